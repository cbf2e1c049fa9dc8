"""A Hub on the loopback interface: enough of its HTTP interface for `huggingface_hub.snapshot_download`.

A repository is a folder. Names that hold `gated` answer 403, unknown names 404, as huggingface.co does.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Server(ThreadingHTTPServer):
    """Holds what the handlers need."""

    repositories: Mapping[str, Path]
    fetched: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        """Stay silent."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/") if part]
        if parts[:2] == ["api", "models"]:
            self._api(parts[2:], body=body)
        elif "resolve" in parts:
            at = parts.index("resolve")
            self._file("/".join(parts[:at]), "/".join(parts[at + 2 :]), body=body)
        else:
            self._send(404, b"{}", {}, body=body)

    def _folder(self, repository: str, *, body: bool) -> Path | None:
        if "gated" in repository:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"}, body=body)
            return None
        folder = self.server.repositories.get(repository)
        if folder is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"}, body=body)
        return folder

    def _api(self, parts: list[str], *, body: bool) -> None:
        cut = next((parts.index(word) for word in ("tree", "revision") if word in parts), len(parts))
        repository = "/".join(parts[:cut])
        folder = self._folder(repository, body=body)
        if folder is None:
            return
        if "revision" in parts and parts[-1] not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no"}, body=body)
            return
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        answer: Any = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        if "tree" in parts:
            answer = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)[:40]}
                for name, path in files.items()
            ]
        self._send(200, json.dumps(answer).encode(), {}, body=body)

    def _file(self, repository: str, name: str, *, body: bool) -> None:
        folder = self._folder(repository, body=body)
        if folder is None:
            return
        path = folder / name
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no file"}, body=body)
            return
        if body:
            self.server.fetched.append(name)
        self._send(200, path.read_bytes(), {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT}, body=body)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str], *, body: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def fake_hub(repositories: Mapping[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as Hub repositories.

    Args:
        repositories: folder by repository id.

    Yields:
        The endpoint for HF_ENDPOINT, and the list of file paths that were downloaded so far.
    """
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.repositories, server.fetched = repositories, []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", server.fetched
        finally:
            server.shutdown()
            thread.join()


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
