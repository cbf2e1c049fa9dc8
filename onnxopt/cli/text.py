"""`onnxopt run | generate | perplexity`: text into a model, text and numbers out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from onnxopt.cli.answers import print_answer
from onnxopt.cli.shared import (
    JsonOption,
    ProgressName,
    ProgressOption,
    QuietOption,
    ThreadsOption,
    TokenizerOption,
    VerboseOption,
    app,
    configure_logging,
    err_console,
    out_console,
)
from onnxopt.errors import InputError, word


@app.command(
    epilog='Examples: `onnxopt run build/minilm "a cat" "a dog"` · '
    '`onnxopt run build/distilbert-sst2 "great!" --json` · '
    '`onnxopt run build/e5 "a question" --prompt query` · '
    "`onnxopt run build/reranker --pair $'a question\\tan answer'` · "
    '`onnxopt run build/mnli "the match ended 2:1" --labels sports,politics` · '
    '`onnxopt run build/clip picture.png --labels "a cat,a dog"`'
)
def run(
    path: Annotated[Path, typer.Argument(help="An artifact folder.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts, or paths of the images or sounds (.wav) that the model takes.")
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            "--pair",
            metavar="A<TAB>B",
            help="Two texts with a tab between (or \\t), for a classifier that reads both, as a reranker does; "
            "repeatable.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            help="Prompt of a sentence-transformers checkpoint to put in front of each text, such as query; its "
            'default when not given, "" for none.',
        ),
    ] = None,
    context: Annotated[str | None, typer.Option("--context", help="The passage that a question is about.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="A,B,...",
            help="Labels of your own to choose from, for a model of entailment (NLI) or one that compares.",
        ),
    ] = None,
    hypothesis: Annotated[
        str | None,
        typer.Option(
            "--hypothesis", help='Sentence that claims a label, which stands in the place of {}: "This example is {}."'
        ),
    ] = None,
    several: Annotated[
        bool, typer.Option("--several", help="Several of --labels may fit: judge each for itself.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="How far to continue a text.")] = 20,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A folder for what a model makes of images: maps of segments or depth, images."),
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Try an artifact by hand: text in, embedding, label or tokens out; an image in, labels, boxes or maps out."""
    configure_logging(verbose=verbose)
    from onnxopt.records.manifest import Manifest

    Manifest.read(path)
    pairs = [_pair(one) for one in pair or ()]
    if labels is None and (hypothesis is not None or several):
        named = "--several" if hypothesis is None else "--hypothesis"
        raise InputError("says how labels are chosen", where=named, hint="name them with --labels a,b,c")
    from onnxopt.cli.live import print_run
    from onnxopt.run.answers import run_text
    from onnxopt.run.claims import Claims

    claims = None if labels is None else Claims.of(labels.split(","), hypothesis, several=several)
    options: dict[str, Any] = {"pairs": pairs, "prompt": prompt, "context": context, "claims": claims, "out": out}
    result = run_text(path, texts or (), **options, max_new_tokens=max_new_tokens)
    if as_json:
        print_answer(result)
    else:
        print_run(out_console, result)


def _pair(text: str) -> tuple[str, str]:
    """Return the two texts of a pair; a tab may be written as such, or as two characters where a shell makes none."""
    first, tab, second = text.partition("\t")
    if not tab:
        first, tab, second = text.partition("\\t")
    if not (tab and first.strip() and second.strip()):
        raise InputError(f"cannot read {word(text)!r}", where="--pair", hint="write two texts with a tab between them")
    return first, second


@app.command(
    epilog='Examples: `onnxopt generate build/smollm2-135m "Name three rivers."` · '
    '`onnxopt generate build/gpt2 "Once upon a time" --temperature 0.8 --seed 1` · '
    "`onnxopt generate build/gpt2 --prompts prompts.jsonl --batch 16 --json`"
)
def generate(
    path: Annotated[Path, typer.Argument(help="An artifact folder, or the .onnx file of a decoder.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="What to continue or answer.")] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help='A prompt per line, or .json, .jsonl, .ndjson with {"prompt": "..."}; - is standard input.',
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="The most tokens to write.")] = 128,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw tokens with the checkpoint's own settings; greedy without it.")
    ] = False,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Draw tokens; 0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Draw from the likeliest share of tokens.")] = None,
    min_p: Annotated[float | None, typer.Option("--min-p", help="Least chance, as a share of the likeliest's.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", help="Above 1: make tokens of the text less likely.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Same seed, same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End a text before this; may be repeated.")] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Use the chat template; on when there is one.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="What the system says first, in a chat.")] = None,
    batch: Annotated[int, typer.Option("--batch", help="How many prompts run together.")] = 8,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    progress: ProgressOption = ProgressName.auto,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write on from prompts: text as it comes, greedy or sampled; tokens per second on standard error."""
    configure_logging(verbose=verbose)
    from onnxopt.run.generate.beside import require_with_tokenizer
    from onnxopt.texts.files import gather_prompts

    if str(prompts_file) == "-":  # which may take its time
        require_with_tokenizer(path, tokenizer)
    asked = gather_prompts(prompts or (), prompts_file)
    require_with_tokenizer(path, tokenizer)
    from onnxopt.cli.live import TextView, print_generation
    from onnxopt.cli.progress import view_of
    from onnxopt.run.generate.generator import Generator
    from onnxopt.run.generate.sampling import choose_sampling

    generator = Generator(path, tokenizer=tokenizer, threads=threads)
    sampling = choose_sampling(
        generator.settings,
        sample=sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    alone = len(asked) == 1 and not as_json
    text = TextView(sys.stdout) if alone else None
    with view_of(progress, quiet=quiet or as_json or alone) as view:
        result = generator.generate(
            asked,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop or (),
            chat=chat,
            system=system,
            max_batch=batch,
            on_text=text.show if text else None,
            progress=lambda step: view.say("generate", step),
        )
    if as_json:
        print_answer(result)
    else:
        print_generation(out_console, err_console, result, streamed=alone, quiet=quiet)


@app.command(
    epilog="Examples: `onnxopt perplexity build/gpt2-mini --original` · "
    "`onnxopt perplexity build/smollm2-135m --text wiki.txt --window 512 --json`"
)
def perplexity(
    path: Annotated[Path, typer.Argument(help="An artifact folder, or an .onnx file of a language model.")],
    text: Annotated[
        str, typer.Option("--text", help="A file of text or JSON entries, or builtin: help texts of CPython.")
    ] = "builtin",
    window: Annotated[
        int | None, typer.Option("--window", help="Tokens of a window; 512, or what the model takes if less.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", help="How far apart windows begin; side by side when not given.")
    ] = None,
    max_windows: Annotated[
        int | None, typer.Option("--max-windows", help="Use the first ones only; 64 of the builtin text, else all.")
    ] = None,
    original: Annotated[
        bool, typer.Option("--original", help="Run the model it was made from too, in torch, on the same tokens.")
    ] = False,
    batch: Annotated[int | None, typer.Option("--batch", help="How many windows run together; by memory.")] = None,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    progress: ProgressOption = ProgressName.auto,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure the perplexity of a language model on a text, with an interval over its windows."""
    configure_logging(verbose=verbose)
    from onnxopt.run.generate.beside import require_with_tokenizer
    from onnxopt.texts.files import require_text

    require_with_tokenizer(path, tokenizer)
    require_text(text)
    from onnxopt.cli.progress import view_of
    from onnxopt.judge.perplexity import measure_perplexity

    with view_of(progress, quiet=quiet or as_json) as view:
        result = measure_perplexity(
            path,
            text=text,
            window=window,
            stride=stride,
            max_windows=max_windows,
            original=original,
            tokenizer=tokenizer,
            batch=batch,
            threads=threads,
            progress=lambda step: view.say("perplexity", step),
        )
    if as_json:
        print_answer(result)
    elif quiet:
        out_console.print(f"{result.scores[0].perplexity:.6f}")
    else:
        for line in result.lines():
            out_console.print(line, markup=False, soft_wrap=True)
