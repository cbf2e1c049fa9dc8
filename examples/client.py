"""Ask a server for embeddings with nothing but the standard library.

`onnxopt serve build/minilm --port 8000` in one terminal, `python examples/client.py "a cat" "a dog"` in another.
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request


def embeddings(address: str, model: str, texts: list[str]) -> list[list[float]]:
    """Return one vector per text.

    Args:
        address: of the server, such as `http://127.0.0.1:8000`.
        model: the name under which it serves the artifact.
        texts: what to embed.

    Raises:
        SystemExit: the server refused; with what it said.
    """
    body = json.dumps({"model": model, "input": texts}).encode()
    asked = urllib.request.Request(f"{address}/v1/embeddings", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error.code}: {json.load(error)['error']['message']}") from error
    return [row["embedding"] for row in sorted(found["data"], key=lambda row: int(row["index"]))]


def main() -> None:
    """Print the beginning of each vector."""
    parser = argparse.ArgumentParser(description="Ask a server for embeddings.")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--address", default="http://127.0.0.1:8000", help="of the server (default: %(default)s)")
    parser.add_argument("--model", default="minilm", help="its name for the artifact (default: %(default)s)")
    arguments = parser.parse_args()
    vectors = embeddings(arguments.address, arguments.model, arguments.texts)
    for text, vector in zip(arguments.texts, vectors, strict=True):
        print(f"{text}: {len(vector)} numbers, {', '.join(f'{number:.4f}' for number in vector[:4])}, ...")


if __name__ == "__main__":
    main()
