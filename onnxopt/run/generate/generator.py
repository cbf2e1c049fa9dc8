"""Write on from prompts with a decoder artifact: greedy or sampled, one text or many, in pieces or at once.

Prompts of different lengths run together, padded on the left; longer lists run in batches of similar length. A text
ends at one of the checkpoint's end tokens, at a stop string, after the tokens that were asked for, or where the model's
context is full. Texts that have ended leave the batch when at least a quarter of its rows has
(`onnxopt.run.generate.decoder.pays`), and always before the columns of the batch would go beyond the context.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxopt.errors import InputError
from onnxopt.records.events import Step
from onnxopt.run.generate.beside import (
    as_ids,
    context_length,
    end_ids,
    read_manifest,
    require_writing,
    tokenizer_folder,
)
from onnxopt.run.generate.decoder import Batch, Decoder, pays
from onnxopt.run.generate.encoder_decoder import EncoderDecoder, Given, start_tokens
from onnxopt.run.generate.row import Row
from onnxopt.run.generate.sampling import GREEDY, Sampler, Sampling
from onnxopt.run.generate.text_stream import TextStream
from onnxopt.run.generate.token_rules import TokenRules
from onnxopt.run.generate.written import Generated, Generation, Speed
from onnxopt.run.inputs.chat import ChatTemplate, Message
from onnxopt.run.inputs.sound import SoundReader
from onnxopt.run.session import Session
from onnxopt.spec import Array
from onnxopt.texts.tokenizer import encoded, open_tokenizer, read_settings, token_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from onnxopt.spec import Target

NEW_TOKENS = 128
MAX_BATCH = 8
RANDOM_WEIGHTS = "the weights are random: the answer means nothing"
_SEEDS = 2**32
Prompt = str | Sequence[int] | Array
OnText = Callable[[int, str], None]


@dataclasses.dataclass
class _Clock:
    """Tokens and seconds so far; time in which the caller holds a piece of text does not count."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0


class Generator:
    """A decoder with its tokenizer, ready to write.

    Args:
        path: an artifact folder, or the .onnx file of a decoder.
        tokenizer: folder of `tokenizer.json` and the configs; beside the model when not given.
        target: where to run; the default is the artifact's own target.
        threads: threads of one operator.
        session: the model, when it is open already.

    Attributes:
        decoder: the model; its `prefill` and `step` are the low-level interface.
        pair: of an encoder-decoder both graphs, in place of the decoder's own `prefill`; None for every other model.
        tokenizer: turns text into tokens and back.
        template: the chat template; None when the checkpoint has none.
        ends: tokens that end a text.
        settings: content of generation_config.json.

    Raises:
        InputError: when there is no decoder with a cache, or no tokenizer.
    """

    decoder: Decoder
    pair: EncoderDecoder | None
    tokenizer: Tokenizer
    template: ChatTemplate | None
    ends: frozenset[int]
    settings: Mapping[str, Any]

    def __init__(
        self,
        path: str | Path,
        *,
        tokenizer: str | Path | None = None,
        target: Target | None = None,
        threads: int | None = None,
        session: Session | None = None,
    ) -> None:
        path = Path(path)
        manifest = read_manifest(path)
        require_writing(path, manifest)
        folder = tokenizer_folder(path, tokenizer)
        self.tokenizer = open_tokenizer(folder)
        config = read_settings(folder, "config.json")
        self.settings = read_settings(folder, "generation_config.json")
        self.template = ChatTemplate.of(folder)
        self.ends = end_ids(self.settings, config) | self._named_end(folder)
        self._rules, self._folder = TokenRules.of(self.settings, sorted(self.ends)), folder
        self.pair = None
        if manifest is not None and manifest.parts:
            start = start_tokens(self.settings, config)
            self.pair = EncoderDecoder.open(path, start=start, target=target, threads=threads)
            self.decoder = self.pair.decoder
        else:
            self.decoder = Decoder.of(
                session or Session(path, target=target, threads=threads),
                manifest.decoding if manifest else None,
                context_length=context_length(config),
            )
        self._sound: SoundReader | None = None
        self._notes = (RANDOM_WEIGHTS,) if manifest and manifest.random_weights else ()

    def _named_end(self, folder: Path) -> frozenset[int]:
        token = token_text(read_settings(folder, "tokenizer_config.json").get("eos_token"))
        return as_ids(self.tokenizer.token_to_id(token)) if token else frozenset()

    def encode(self, prompt: str, *, chat: bool | None = None, system: str | None = None) -> list[int]:
        """Return the tokens of a prompt.

        Args:
            prompt: what the user says.
            chat: whether to write it into the chat template; the default is to do so when there is one.
            system: what the system says before it, in the chat template.

        Raises:
            InputError: when the prompt is empty, or the chat template is missing or refuses.
        """
        if not prompt.strip():
            raise InputError("the prompt is empty", hint="write at least one word")
        if not self._chats(chat=chat, system=system):
            return list(self._tokens(prompt, specials=True))
        messages: list[Message] = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self.encode_chat(messages)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation in the checkpoint's chat template.

        Args:
            messages: each with `role` and `content`.

        Raises:
            InputError: when there is no template or it refuses.
        """
        self._chats(chat=True, system=None)
        assert self.template is not None  # noqa: S101  # for the type checker; the line above looked
        return self._tokens(self.template.render(messages), specials=False)  # the template writes them itself

    def row(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = NEW_TOKENS,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        chat: bool | None = None,
        system: str | None = None,
    ) -> Row:
        """Return a text to be written, for those who step the decoder themselves; arguments as in `generate`."""
        return self._rows([prompt], max_new_tokens, sampling, stop, chat=chat, system=system)[0]

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = NEW_TOKENS,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        chat: bool | None = None,
        system: str | None = None,
    ) -> Iterator[str]:
        """Yield the text after a prompt in pieces, each as soon as it is certain; arguments as in `generate`."""
        rows = self._rows([prompt], max_new_tokens, sampling, stop, chat=chat, system=system)
        return (piece for _, piece in self._decode(rows, _Clock()) if piece)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = NEW_TOKENS,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        chat: bool | None = None,
        system: str | None = None,
        max_batch: int = MAX_BATCH,
        on_text: OnText | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Generation:
        """Write on from each prompt.

        Args:
            prompts: texts, or rows of token ids; for a model of speech .wav files, or features [bins, frames].
            max_new_tokens: the most tokens to write for each.
            sampling: how tokens are chosen; greedy without it. What is drawn for a prompt depends on the seed and on
                its place in the list, not on its neighbours in a batch.
            stop: strings that end a text.
            chat: whether texts go through the chat template; the default is to do so when there is one.
            system: what the system says first, in the chat template.
            max_batch: how many prompts run together.
            on_text: told each piece of text, with the number of its prompt from 0.
            progress: told what is being done.

        Returns:
            Texts in the order of the prompts, and how fast they came.

        Raises:
            InputError: when there is no prompt, one is empty or longer than the model takes, or an option is out of
                range.
        """
        if max_batch < 1:
            raise InputError(f"the batch is {max_batch}", hint="it must be 1 or more")
        if sampling.seed is None and not sampling.greedy:
            sampling = dataclasses.replace(sampling, seed=secrets.randbelow(_SEEDS))
        rows = self._rows(prompts, max_new_tokens, sampling, stop, chat=chat, system=system)
        clock, done = _Clock(), 0
        for some in self._batches(rows, max_batch):
            if progress:
                words = f"prompts {done + 1} to {done + len(some)} of {len(rows)}"
                progress(Step(words, work="prompts", done=done, total=len(rows)))
            for row, piece in self._decode(some, clock):
                if on_text and piece:
                    on_text(row.number, piece)
            done += len(some)
        return Generation(
            results=tuple(
                Generated(
                    prompt=prompt if isinstance(prompt, str) else "",
                    text=row.text,
                    tokens=tuple(row.tokens),
                    prompt_tokens=_tokens_of(row.source),
                    finish=row.finish or "length",
                )
                for prompt, row in zip(prompts, rows, strict=True)
            ),
            speed=Speed(**dataclasses.asdict(clock)),
            seed=None if sampling.greedy else sampling.seed,
            chat=any(isinstance(prompt, str) for prompt in prompts) and self._chats(chat=chat, system=system),
            notes=(*self._notes, *self._full(rows)),
        )

    def _batches(self, rows: Sequence[Row], most: int) -> Iterator[list[Row]]:
        """Yield rows that run together.

        Similar lengths waste the least on padding; the longest come first, since they need the most memory.
        """
        some: list[Row] = []
        padded = self.pair is not None or self.decoder.takes_padding
        for row in sorted(rows, key=lambda row: -len(row.source)):
            differs = bool(some) and len(some[0].source) != len(row.source)
            if some and (len(some) == most or (differs and not padded)):
                yield some
                some = []
            some.append(row)
        yield some

    def _full(self, rows: Sequence[Row]) -> Iterator[str]:
        full = sum(row.finish == "context" for row in rows)
        if full:
            limit = f"{self.decoder.context_length} tokens that the model takes{self.decoder.limit_reason}"
            yield f"{full} of {len(rows)} texts stopped at the {limit}"

    def _chats(self, *, chat: bool | None, system: str | None) -> bool:
        """Return whether prompts go through the chat template."""
        if chat and self.template is None:
            raise InputError("the checkpoint has no chat template", hint="leave out --chat")
        chats = self.template is not None if chat is None else chat
        if system is not None and not chats:
            raise InputError("a system prompt needs a chat template", hint="leave out --system")
        return chats

    def _tokens(self, text: str, *, specials: bool) -> list[int]:
        return list(encoded(self.tokenizer, [text], marks=specials)[0].ids)

    def _rows(
        self,
        prompts: Sequence[Prompt],
        most: int,
        sampling: Sampling,
        stop: Sequence[str],
        *,
        chat: bool | None,
        system: str | None,
    ) -> list[Row]:
        if most < 1:
            raise InputError(f"the number of new tokens is {most}", hint="it must be 1 or more")
        if isinstance(prompts, str) or not prompts:
            raise InputError("there is no prompt", hint="give a list with at least one")
        context, rows = self.decoder.context_length, []
        for number, prompt in enumerate(prompts):
            name = f"prompt {number + 1}" if len(prompts) > 1 else "the prompt"
            try:
                source = self._source(prompt, chat=chat, system=system)
            except InputError as error:
                raise InputError(error.what.replace("the prompt", name), where=error.where, hint=error.hint) from error
            if not len(source):
                raise InputError(f"{name} gives no tokens", hint="write at least one word")
            takes = self.pair.longest if self.pair else context
            if takes and _tokens_of(source) > takes:
                raise self.decoder.too_long(name, len(source), takes)
            ids = list(self.pair.start) if self.pair else [int(token) for token in source]
            sampler, text = Sampler(sampling, ids, stream=number), TextStream(self.tokenizer, ids, stop)
            rows.append(Row(number, source, ids, sampler, self._rules, text, self.ends, most, context))
        return rows

    def _source(self, prompt: Prompt, *, chat: bool | None, system: str | None) -> Given:
        """Return what the model reads: tokens, or features of sound."""
        if self.pair is None or not self.pair.hears:
            return self.encode(prompt, chat=chat, system=system) if isinstance(prompt, str) else list(prompt)
        if not isinstance(prompt, str):
            return np.asarray(prompt)
        self._sound = self._sound or SoundReader(self._folder)
        return self._sound.features(Path(prompt))

    def _decode(self, rows: Sequence[Row], clock: _Clock) -> Iterator[tuple[Row, str]]:
        """Write on from rows until all have ended; yield each new piece of text, which may be empty."""
        started = time.perf_counter()
        batch = self._prefill(rows)
        clock.prefill_seconds += time.perf_counter() - started
        clock.prefill_tokens += sum(_tokens_of(row.source) for row in rows)
        active, chosen = list(rows), [0] * len(rows)
        first = True
        while True:
            started = time.perf_counter()
            pieces = []
            for place, row in enumerate(active):
                if row.finish is None:
                    chosen[place], piece = row.grow(batch.logits[place])
                    pieces.append((row, piece))
            clock.decode_seconds += time.perf_counter() - started
            clock.decode_tokens += 0 if first else len(pieces)
            first = False
            yield from pieces
            started = time.perf_counter()
            live = [place for place, row in enumerate(active) if row.finish is None]
            if not live:
                return
            if self._leave(batch, len(active) - len(live)):
                batch.keep(live)
                active, chosen = [active[place] for place in live], [chosen[place] for place in live]
            batch.step(chosen, [row.finish is None for row in active])
            clock.decode_seconds += time.perf_counter() - started

    def _prefill(self, rows: Sequence[Row]) -> Batch:
        most, context = max(row.most for row in rows), self.decoder.context_length
        room = most if not context else min(most, context - max(len(row.prompt) for row in rows))
        if self.pair is not None:
            return self.pair.prefill([row.source for row in rows], new_tokens=room)
        return self.decoder.prefill([row.prompt for row in rows], new_tokens=room)

    def _leave(self, batch: Batch, finished: int) -> bool:
        """Return whether rows that have ended leave the batch now."""
        width, context = batch.mask.shape[1], self.decoder.context_length
        return finished > 0 and (pays(finished, len(batch)) or bool(context and width >= context))


def _tokens_of(source: Given) -> int:
    """Return how many tokens a source has; of sound there are none."""
    return 0 if isinstance(source, np.ndarray) and source.ndim > 1 else len(source)


# What lies beside a model


# What the command line gives
