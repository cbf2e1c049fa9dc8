"""Masks, rows and positions are found by what they do, and the same is compared whatever they are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt.errors import ProofError
from onnxopt.graph.roles import mask_of
from onnxopt.load.graph_feeder import InputPlan
from onnxopt.load.learn.roles import structural_roles
from onnxopt.load.onnx_file import load_onnx
from onnxopt.proof.cases import cases_of
from onnxopt.proof.compare import compare_models
from onnxopt.proof.observations import observations_of
from onnxopt.proof.whole import prove
from onnxopt.spec import PADDINGS, Budget, TensorSpec
from tests.support.axes import encoder_text, load, renamed, table, write

NAMES = [
    ("input_ids", "attention_mask", "batch", "sequence"),
    ("input_ids", "attention_mask", "batch_size", "seq_len"),
    ("tokens", "keep", "s6", "image_width"),
    ("words", "real", "height", "channels"),
    ("a", "b", "sequence", "batch"),
]


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_the_same_is_compared_under_any_name(names: tuple[str, str, str, str], tmp_path: Path) -> None:
    ids, mask, batch, positions = names
    usual = load(tmp_path, encoder_text(), table=table())
    loaded = load(tmp_path, encoder_text(ids, mask, batch, positions), table=table())
    assert loaded.signature.mask == mask
    assert {spec.axes for spec in loaded.signature.inputs} == {("batch", "sequence")}
    assert loaded.shown({"batch": 3, "sequence": 4}) == {batch: 3, positions: 4}
    assert cases_of(loaded) == cases_of(usual)
    assert {padding for _, padding in cases_of(loaded)} == set(PADDINGS)
    assert [one.sizes for one in observations_of(loaded)] == [one.sizes for one in observations_of(usual)]


def test_axes_of_exporters_that_text_cannot_spell(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", encoder_text("x", "y"), table=table())
    names = {"b": "DynamicDimension.0", "s": "DynamicDimension.1"}
    onnx.save(renamed(onnx.load(path), names), path)
    loaded = load_onnx(path)
    assert loaded.signature.mask == "y"
    assert loaded.names == {"batch": "DynamicDimension.0", "sequence": "DynamicDimension.1"}


def test_a_candidate_that_forgets_the_mask_is_refuted_under_any_name(tmp_path: Path) -> None:
    loaded = load(tmp_path, encoder_text("words", "real", "n", "m"), table=table())

    def forgets(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return loaded.reference.run({**feeds, "real": np.ones_like(feeds["real"])})

    with pytest.raises(ProofError, match=r"n 3 m 7, (right|left|holes) padding"):
        prove(forgets, loaded, Budget(), cases_of(loaded))


def test_what_is_called_a_mask_and_leaks_is_none(tmp_path: Path) -> None:
    """The mask is added to words: positions with a zero still reach all others, so every row of the output counts."""
    text = """g (int64[b,s] input_ids, int64[b,s] attention_mask) => (float[b,s,8] y) {
      words = Gather(table, input_ids) turned = Transpose<perm = [0, 2, 1]>(words) scores = MatMul(words, turned)
      chances = Softmax<axis = -1>(scores) mixed = MatMul(chances, words)
      kept = Cast<to = 1>(attention_mask) last = Constant<value_ints = [2]>() wide = Unsqueeze(kept, last)
      y = Add(mixed, wide) }"""
    loaded = load(tmp_path, text, table=table())
    assert loaded.signature.mask == ""
    assert mask_of(loaded.signature) is None
    assert {padding for _, padding in cases_of(loaded)} == set(PADDINGS), "it is still filled in every way"

    def wrong_at_zeros(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = loaded.reference.run(feeds)["y"]
        return {"y": np.where(feeds["attention_mask"][..., None] == 0, found + 1, found)}

    with pytest.raises(ProofError, match="padding"):
        prove(wrong_at_zeros, loaded, Budget(), cases_of(loaded))


def test_a_causal_mask_is_found_too(tmp_path: Path) -> None:
    text = encoder_text("a", "b", "n", "m").replace(
        "chances = Softmax<axis = -1>(masked)",
        "zero = Constant<value = int64 {0}>() upper = Trilu<upper = 1>(ones, first) far = Mul(upper, lowest)"
        " causal = Add(masked, far) chances = Softmax<axis = -1>(causal)",
    )
    text = text.replace(
        "w_ = Gather",
        "like = Shape<start = 1>(a) both = Concat<axis = 0>(like, like)"
        " ones = ConstantOfShape<value = float[1] {1}>(both) w_ = Gather",
    )
    loaded = load(tmp_path, text, table=table(), first=np.array(1, np.int64))
    assert loaded.signature.mask == "b"


def test_models_that_differ_behind_a_hundred_rows_are_told_apart(tmp_path: Path) -> None:
    first = write(tmp_path / "a.onnx", "g (float[width,4] x) => (float[width,4] y) { y = Relu(x) }")
    cut = """g (float[width,4] x) => (float[width,4] y) {
      head = Slice(x, zero, hundred) tail = Slice(x, hundred, end) h = Relu(head) y = Concat<axis = 0>(h, tail) }"""
    numbers = {"zero": 0, "hundred": 100, "end": 2**62}
    second = write(tmp_path / "b.onnx", cut, **{name: np.array([n], np.int64) for name, n in numbers.items()})
    found = compare_models(first, second)
    assert not found.equal
    assert found.failed_case.startswith("output y at width 1")
    assert not compare_models(second, first).equal


def test_a_cache_is_told_by_its_shape() -> None:
    cache = ("rows", 2, "old", 8)
    plans = (
        InputPlan(TensorSpec("ids", "int64", ("rows", "new")), "ids", 50),
        InputPlan(TensorSpec("keep", "int64", ("rows", "all")), "mask"),
        *(InputPlan(TensorSpec(f"kv{index}", "float32", cache), "float") for index in range(2)),
    )
    assert structural_roles(plans) == {"old": "past", "new": "sequence", "rows": "batch", "all": "total"}
    assert structural_roles(plans[:3]) == {}, "one image is no cache"
