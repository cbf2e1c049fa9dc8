"""Numbers of bytes, written and read."""

from __future__ import annotations

import pytest

from onnxopt.errors import InputError
from onnxopt.host.sizes import parse_size, size_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (-1536, "-1.5 KiB"),
        (91 * 2**20, "91.0 MiB"),
        (3 * 2**30, "3.00 GiB"),
        (5000 * 2**30, "5000.00 GiB"),
    ],
)
def test_bytes_get_a_unit(count: int, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 << 30), ("2gib", 2 << 30), ("1.5G", 3 << 29), ("512 MB", 512 << 20), ("7", 7), ("3k", 3072)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2XB", "0", "1e9", "two"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(InputError, match="is no size; write for example 2GB"):
        parse_size(text)
