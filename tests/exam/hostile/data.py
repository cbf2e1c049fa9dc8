"""Hostile data: archives of arrays, texts, images, recipes and words of the command line."""

from __future__ import annotations

import functools
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.exam.hostile.artifacts import run
from tests.exam.hostile.cases import QUIET, Case, artifact, checkpoint, edited, optimized, resealed
from tests.support.bad_models import good_model


def npz(arrays: Mapping[str, Any]) -> bytes:
    """An archive as NumPy writes it."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def lying(shape: tuple[int, ...], dtype: str = "<f4", content: bytes = bytes(64)) -> bytes:
    """An archive whose array says another shape than it has."""
    header, stream = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + content)
    return stream.getvalue()


def members(names: Mapping[str, bytes]) -> bytes:
    """An archive of any members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return stream.getvalue()


X = np.ones((2, 4), np.float32)
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "sound": lambda: npz({"x": X}),
    "empty": lambda: b"",
    "no archive": lambda: b"not a zip at all" * 9,
    "cut short": lambda: npz({"x": X})[:90],
    "of nothing": lambda: members({}),
    "a bomb": lambda: npz({"x": np.zeros((1 << 29,), np.uint8), "y": np.zeros((1 << 30,), np.uint8)}),
    "a pickle": lambda: npz({"x": np.array([{"a": 1}], object)}),
    "another name": lambda: npz({"z": X}),
    "another type": lambda: npz({"x": X.astype(np.int64)}),
    "text": lambda: npz({"x": np.array(["a"])}),
    "another rank": lambda: npz({"x": np.ones((2, 4, 3), np.float32)}),
    "a scalar": lambda: npz({"x": np.float32(1)}),
    "not a number": lambda: npz({"x": np.full((2, 4), np.nan, np.float32)}),
    "no rows": lambda: npz({"x": np.zeros((0, 4), np.float32)}),
    "a shape of 2^60": lambda: lying((1 << 60,)),
    "a shape of 2^80": lambda: lying((1 << 40, 1 << 40)),
    "a negative shape": lambda: lying((-4, 4)),
    "a type of 2^30 bytes": lambda: lying((1,), "|V1073741824"),
    "a header that is code": lambda: members(
        {"x.npy": b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').system('id')   "}
    ),
    "a header of brackets": lambda: members({"x.npy": b"\x93NUMPY\x02\x00\x00\x20\x00\x00" + b"(" * 8192}),
    "a member that leads out": lambda: members({"../../x.npy": b"\x93NUMPY"}),
    "a member that is no array": lambda: members({"x.npy": b"hello"}),
    "a locked member": lambda: npz({"x": X}).replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01"),
}
TEXTS: dict[str, bytes] = {
    "of nothing": b"",
    "of blanks": b" \n\t\n" * 99,
    "no UTF-8": b"\xff\xfe\xfa" * 99,
    "zeros": bytes(10_000),
    "one line of four megabytes": b"word " * 800_000,
    "one word of a megabyte": b"a" * 1_000_000,
    "half a letter": b"abc \xe2\x82",
    "marks of combination": "a\u0301".encode() * 20_000,
}
JSONS: dict[str, bytes] = {
    "numbers": b"1\n2\n3\n",
    "objects without text": b'{"a": 1}\n{"b": []}\n',
    "text that is a list": b'{"text": ["a"]}\n',
    "a hundred thousand levels": b"[" * 100_000,
    "half of a pair": b'{"text": "\\ud800"}\n',
    "broken": b'{"text": "a"',
    "a number of a million digits": b'{"text": "a", "label": ' + b"9" * 1_000_000 + b"}",
}


def png(width: int, height: int, body: bytes = b"", *, depth: int = 8, color: int = 2) -> bytes:
    """A PNG of a size that its pixels need not have."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def picture(width: int, height: int) -> bytes:
    """A sound PNG."""
    return png(width, height, b"".join(b"\0" + bytes(3 * width) for _ in range(height)))


IMAGES: dict[str, Callable[[], bytes]] = {
    "sound": lambda: picture(40, 30),
    "empty": lambda: b"",
    "text": lambda: b"no image",
    "cut short": lambda: picture(40, 30)[:60],
    "of 60,000 by 60,000": lambda: png(60_000, 60_000),
    "of 2^31 by 1": lambda: png(2**31 - 1, 1),
    "of no size": lambda: png(0, 0),
    "of one by 60,000": lambda: png(1, 60_000, b"\0\0\0\0" * 60_000),
    "of one pixel": lambda: picture(1, 1),
    "in 16 bits": lambda: png(4, 4, (b"\0" + bytes(24)) * 4, depth=16),
    "of a kind that is none": lambda: png(4, 4, b"", color=5),
    "of pixels that are too few": lambda: png(400, 400, b"\0" * 9),
    "a bomb of zeros": lambda: png(9000, 9000, bytes(9000 * (3 * 9000 + 1))),
    "a vector of scripts": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
    "an icon of icons": lambda: b"\0\0\1\0\1\0" + b"\0" * 12 + struct.pack("<I", 6) + b"\0\0\1\0" * 9,
    "a program in PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n/x {x} def x\n",
}
PROCESSOR: dict[str, tuple[Any, ...]] = {
    "size": (0, -5, "x", {"height": 0, "width": 0}, {"height": 10**9, "width": 10**9}, {"a": 1}, [1, 2, 3], 16_000),
    "resample": (99, "x", -1),
    "rescale_factor": ("x", None, [1]),
    "image_mean": ("x", [1, 2], [[1]], {}),
    "image_std": (0, [0, 0, 0], "x"),
    "crop_size": ("x", -1, 10**9),
    "do_resize": ("no", []),
}
RECIPES: dict[str, bytes] = {
    "of nothing": b"",
    "no TOML": b"= = =",
    "of wrong types": b"source = 5\nprune = [1]\n",
    "of tables that are missing": b"[evil]\na = 1\n",
    "of brackets": b"a = " + b"[" * 50_000,
    "of zeros": bytes(1000),
    "of bytes": b"\xff\xfe",
}
WORDS: dict[str, tuple[str, ...]] = {
    "a share of infinity": ("prune", "{checkpoint}", "ffn=1e400%", "-o", "out", QUIET),
    "a negative share": ("prune", "{checkpoint}", "ffn=-5%", "-o", "out", QUIET),
    "layers without end": ("prune", "{checkpoint}", "layers=" + "9" * 5000, "-o", "out", QUIET),
    "a workload of zeros": ("optimize", "{model}", "-w", "0x0", "-o", "out", QUIET, "--no-measure"),
    "a workload of 2^70": ("optimize", "{model}", "-w", f"{2**70}x1", "-o", "out", QUIET, "--no-measure"),
    "an axis that is none": ("optimize", "{model}", "--axis", "batch=1..0", "-o", "out", QUIET, "--no-measure"),
    "an axis of 2^70": ("optimize", "{model}", "--axis", f"batch={2**70}", "-o", "out", QUIET, "--no-measure"),
    "an output that is the source": ("optimize", "{model}", "-o", ".", QUIET, "--no-measure"),
    "an output in a device": ("optimize", "{model}", "-o", "/dev/null/out", QUIET, "--no-measure"),
    "a source of zeros": ("inspect", "a\x01b", QUIET),
    "a source of a hundred thousand letters": ("inspect", "a" * 100_000, QUIET),
    "a source that is a device": ("inspect", "/dev/zero", QUIET),
    "a pattern that backtracks": (
        *("optimize", "{model}", "--keep", "/(a+)+$/", "-p", "int8", "-o", "out"),
        *(QUIET, "--no-measure", "--calibration", "random"),
    ),
}


def _archive(make: Callable[[], bytes], folder: Path) -> list[str]:
    (folder / "model.onnx").write_bytes(good_model().SerializeToString())
    (folder / "given.npz").write_bytes(make())
    return optimized(folder / "model.onnx", "--feeds", str(folder / "given.npz"))


def _archive_of(make: Callable[[], bytes], folder: Path) -> list[str]:
    (folder / "model.onnx").write_bytes(good_model().SerializeToString())
    (folder / "given.npz").write_bytes(make())
    how = ("-p", "int8", "--calibration", str(folder / "given.npz"))
    return optimized(folder / "model.onnx", *how)


def _text(name: str, content: bytes, folder: Path) -> list[str]:
    path = folder / name
    path.write_bytes(content)
    return optimized(checkpoint(folder), "-p", "int8", "--calibration", str(path))


def _text_of(make: Callable[[Path], object], folder: Path) -> list[str]:
    make(folder / "texts.txt")
    return optimized(checkpoint(folder), "-p", "int8", "--calibration", str(folder / "texts.txt"))


def _device(name: str, folder: Path) -> list[str]:
    return optimized(checkpoint(folder), "-p", "int8", "--calibration", name)


def _image(make: Callable[[], bytes], folder: Path) -> list[str]:
    (folder / "a.png").write_bytes(make())
    return run(artifact(folder, "vit"), str(folder / "a.png"))


def _image_in(make: Callable[[Path], object], folder: Path) -> list[str]:
    make(folder / "a.png")
    return run(artifact(folder, "vit"), str(folder / "a.png"))


def _processor(key: str, value: Any, folder: Path) -> list[str]:
    (folder / "a.png").write_bytes(picture(50, 40))
    edited(artifact(folder, "vit") / "preprocessor_config.json", **{key: value})
    return run(resealed(folder / "artifact"), str(folder / "a.png"))


def _recipe(content: bytes, folder: Path) -> list[str]:
    (folder / "recipe.toml").write_bytes(content)
    return ["compress", str(folder / "recipe.toml"), "-o", str(folder / "out"), QUIET]


def _recipe_in_a_pipe(folder: Path) -> list[str]:
    os.mkfifo(folder / "recipe.toml")
    return ["compress", str(folder / "recipe.toml"), "-o", str(folder / "out"), QUIET]


def _words(words: tuple[str, ...], folder: Path) -> list[str]:
    (folder / "model.onnx").write_bytes(good_model().SerializeToString())
    known = {"{model}": folder / "model.onnx"}
    if "{checkpoint}" in words:
        known["{checkpoint}"] = checkpoint(folder)
    return [str(known.get(word, word)) for word in words]


def cases() -> list[Case]:
    """All of them."""
    devices = ("/dev/zero", "/dev/stdin", "/dev/null", "/proc/self/mem", "/")
    return [
        *(Case("npz", f"{name}, as inputs", functools.partial(_archive, make)) for name, make in ARCHIVES.items()),
        *(
            Case("npz", f"{name}, to calibrate", functools.partial(_archive_of, make))
            for name, make in ARCHIVES.items()
        ),
        *(Case("text", name, functools.partial(_text, "texts.txt", content)) for name, content in TEXTS.items()),
        *(
            Case("text", f"JSON of {name}", functools.partial(_text, "a.jsonl", content))
            for name, content in JSONS.items()
        ),
        Case("text", "a pipe", functools.partial(_text_of, os.mkfifo)),
        Case("text", "a folder", functools.partial(_text_of, Path.mkdir)),
        *(Case("text", name, functools.partial(_device, name)) for name in devices),
        *(Case("image", name, functools.partial(_image, make)) for name, make in IMAGES.items()),
        Case("image", "a pipe", functools.partial(_image_in, os.mkfifo)),
        Case("image", "a folder", functools.partial(_image_in, Path.mkdir)),
        *(
            Case("image", f"settings: {key} is {value!r}", functools.partial(_processor, key, value))
            for key, values in PROCESSOR.items()
            for value in values
        ),
        *(Case("words", f"a recipe {name}", functools.partial(_recipe, content)) for name, content in RECIPES.items()),
        Case("words", "a recipe in a pipe", _recipe_in_a_pipe),
        *(Case("words", name, functools.partial(_words, words)) for name, words in WORDS.items()),
    ]
