"""The README of a client: how it is run, what it does with text, and what it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxopt.artifact.golden_texts import GoldenTexts

# what checks an artifact in the folder of a client
RUN: Mapping[str, str] = {
    "node": "npm install && npm test",
    "web": "npm install && npm start",
    "genai": "pip install -r requirements.txt && python generate.py",
    "triton": "tritonserver --model-repository=.",
    "cpp": "cmake -B build -DONNXRUNTIME_ROOT=... && cmake --build build && build/check_golden ../..",
    "csharp": "dotnet run",
    "java": "mvn -q compile exec:java",
    "rust": "cargo run --release",
}
# what gives it texts there, with a place for them
_ASK: Mapping[str, str] = {
    "node": "node run.mjs {texts}",
    "genai": "python generate.py {texts}",
    "cpp": "build/check_golden ../.. {texts}",
    "csharp": "dotnet run -- ../.. {texts}",
    "java": "mvn -q compile exec:java -Dexec.args='../.. {texts}'",
    "rust": "cargo run --release -- ../.. {texts}",
}
_NEEDS: Mapping[str, str] = {
    "node": "Node 20 or newer; onnxruntime-node and transformers.js, of the versions in package.json. `.npmrc` keeps "
    "onnxruntime-node from fetching the library of CUDA.",
    "web": "Node 20 or newer for the small server; onnxruntime-web and @huggingface/tokenizers, of the versions in "
    "package.json. The page opens the folder of an artifact, and nothing leaves the browser.",
    "genai": "Python 3.11 or newer and onnxruntime-genai.",
    "triton": "Triton Inference Server with its onnxruntime backend. It takes tensors: tokenize before it.",
    "cpp": "CMake 3.18, a compiler of C++17, and an unpacked release of ONNX Runtime (ONNXRUNTIME_ROOT). For text "
    "CMake fetches mlc-ai/tokenizers-cpp and builds it, which takes cargo; `-DWITH_TEXT=OFF` leaves text out.",
    "csharp": ".NET 8; Microsoft.ML.OnnxRuntime and Microsoft.ML.Tokenizers, of the versions in CheckGolden.csproj. "
    "The latter does not read tokenizer.json: WordPiece as BERT has it is made from its vocabulary, and every other "
    "tokenizer is refused in words; feed ids instead.",
    "java": "JDK 17 and Maven; com.microsoft.onnxruntime:onnxruntime and ai.djl.huggingface:tokenizers, of the "
    "versions in pom.xml.",
    "rust": "cargo; `ort` and `tokenizers`, of the versions in Cargo.toml.",
}
_SHOWN: Mapping[str, str] = {
    "embedding": "the vector that the graph gives: pooling, and layers and normalization behind it, lie in it",
    "scores": "a score per label, made from the logits as io.json says",
    "token_scores": "a score per token and label",
    "tokens": "what the model writes",
}
# these put the special tokens around a text themselves, as io.json has them
_MARKING = frozenset({"web", "cpp", "csharp", "java", "rust"})
_UNMARKED = "It reads no text: the tokenizer does more than put special tokens around one. Feed ids, or use Node."
_JOINED = "the entities, from a score per label of each token"
_TAB = "Two texts that are read together are one argument with a tab between"
_FIRST = "The client repeats the first token that the model writes; to write on use `onnxopt package --for genai`: "
_FIRST += "onnxruntime-genai has C++, C# and Java too."


def takes_text(stack: str, io: Mapping[str, Any], texts: GoldenTexts | None) -> bool:
    """Tell whether a client repeats golden texts: most put the special tokens around a text themselves.

    Args:
        stack: one of `onnxopt.artifact.clients.STACKS`.
        io: content of the artifact's `io.json`.
        texts: its golden texts; None where it takes no text.
    """
    return texts is not None and (stack not in _MARKING or "marks" in io["tokenizer"])


def asking(stack: str, io: Mapping[str, Any], texts: GoldenTexts | None) -> str:
    """Return the command that gives texts to a client; empty where it takes none.

    Args:
        stack: one of `onnxopt.artifact.clients.STACKS`.
        io: content of the artifact's `io.json`.
        texts: its golden texts; None where it takes no text.
    """
    if texts is None or not takes_text(stack, io, texts) or (texts.answer not in _SHOWN and stack != "node"):
        return ""
    asked = '"The capital of France is"' if "decoding" in io else '"a cat sleeps" "a kitten naps"'
    return _ASK.get(stack, "").format(texts=asked)


def readme(stack: str, name: str, io: Mapping[str, Any], texts: GoldenTexts | None, notes: Sequence[str] = ()) -> str:
    """Return the README of a client.

    Args:
        stack: one of `onnxopt.artifact.clients.STACKS`.
        name: of the artifact.
        io: content of its `io.json`.
        texts: its golden texts; None where it takes no text.
        notes: sentences that say why there are no golden texts, where it takes text and has none.
    """
    lines = [f"# {name} in {stack}", "", f"Needs: {_NEEDS[stack]}", "", "```", RUN[stack], "```", ""]
    if stack == "triton":
        return "\n".join(lines[:-1]) + "\n"
    if stack != "genai":
        lines += ["It repeats the golden cases of the artifact (`golden/golden.json`), tensors in and out.", ""]
    if texts is None:
        said = [f"{note[:1].upper()}{note[1:]}." for note in notes] or ["The artifact takes no text."]
        return "\n".join([*lines, *said]) + "\n"
    if not takes_text(stack, io, texts):
        return "\n".join([*lines, _UNMARKED]) + "\n"
    lines += [*_repeated(stack, texts), ""]
    ask = asking(stack, io, texts)
    if ask and texts.answer in _SHOWN:
        shown = _JOINED if texts.answer == "token_scores" and stack == "node" else _SHOWN[texts.answer]
        lines += [f"Given texts it prints {shown}:", "", "```", ask, "```", ""]
        lines += _extra(stack, io, texts)
    return "\n".join(lines).rstrip() + "\n"


def _repeated(stack: str, texts: GoldenTexts) -> list[str]:
    """Return what a client does with the golden texts, and how it says what came of them."""
    whole = f"It repeats {len(texts.cases)} golden texts (`golden/texts.json`): first the ids, so that another "
    whole += "tokenizer is told apart from another graph, then the answer."
    if stack == "csharp":
        whole = f"Where the tokenizer is WordPiece as BERT has it, it repeats {whole.removeprefix('It repeats ')}"
    code = "Exit code 0: all equal; 1: something differs; 2: it cannot run."
    return [whole, "The page says what differs." if stack == "web" else code]


def _extra(stack: str, io: Mapping[str, Any], texts: GoldenTexts) -> list[str]:
    if texts.answer == "tokens":
        return [] if stack in {"node", "genai"} else [_FIRST]
    if texts.answer != "scores" or "pair" not in io["tokenizer"].get("marks", {}):
        return []
    if stack == "node":
        return ["Two texts that are read together follow `--pair`: `node run.mjs --pair question answer`."]
    if stack == "java":
        return [_TAB + ": write a tab inside the quotes of `-Dexec.args`, and double quotes around the two."]
    return [_TAB + ": `$'question\\tanswer'`."]
