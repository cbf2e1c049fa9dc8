"""The prompts of a sentence-transformers checkpoint: words that it was trained to read in front of a text, by name.

Source: `prompts` and `default_prompt_name` of config_sentence_transformers.json, `include_prompt` of
N_Pooling/config.json (sentence-transformers, `SentenceTransformer.encode`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnxopt.errors import InputError, word
from onnxopt.texts.tokenizer import read_settings

SETTINGS = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Prompts:
    """What may stand in front of a text.

    Attributes:
        named: the words of each prompt.
        default: the name of the one that is used where none is asked for; empty for none.
        pooled: whether its tokens count in the embedding; where they do not, a graph that pools all tokens is wrong.
    """

    named: Mapping[str, str] = field(default_factory=dict)
    default: str = ""
    pooled: bool = True

    @classmethod
    def of(cls, folder: Path) -> Prompts:
        """Read the prompts of a checkpoint or an artifact; what is none of the format is left out.

        Raises:
            InputError: a file of them is no JSON object.
        """
        settings = read_settings(folder, SETTINGS)
        found = settings.get("prompts")
        named = {
            name: text
            for name, text in (found.items() if isinstance(found, Mapping) else ())
            if isinstance(name, str) and isinstance(text, str)
        }
        default = settings.get("default_prompt_name")
        poolings = [path.parent.name for path in sorted(folder.glob("[0-9]_Pooling/config.json"))]
        pooled = all(read_settings(folder / name, "config.json").get("include_prompt", True) for name in poolings)
        return cls(named, default if isinstance(default, str) and default in named else "", pooled)

    def before(self, name: str | None = None) -> str:
        """Return what stands in front of a text.

        Args:
            name: of the prompt; None is the default one, an empty name none at all.

        Raises:
            InputError: there is no prompt of that name, or its tokens may not count.
        """
        name = self.default if name is None else name
        if not name:
            return ""
        if name not in self.named:
            known = ", ".join(self.named)
            raise InputError(
                f"the model has no prompt {word(name)!r}",
                hint=f"use one of {known}" if known else f"it comes without prompts ({SETTINGS})",
            )
        if self.named[name] and not self.pooled:
            raise InputError(
                f"the tokens of the prompt {word(name)!r} do not count in the embedding (include_prompt), and in this "
                "graph they would",
                hint="leave the prompt out",
            )
        return self.named[name]
