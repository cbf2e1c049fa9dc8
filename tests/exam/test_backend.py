"""A few of ONNX's backend cases on every run, of each kind some, and the exam itself: it must see what is wrong."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.artifact.package import write_artifact
from onnxopt.road import work, write
from tests.exam.backend import counts_of, failed, table
from tests.exam.cases import BackendCase, backend_cases, difference
from tests.exam.worker import Record, judge, kind_of, plain

CASES = {
    "arithmetic, shapes that are inputs, reductions, selections": """
        abs add_bcast mod_mixed_sign_float16 clip_default_int8_min pow_types_float32_int64
        reshape_negative_extended_dims expand_dim_changed slice_neg_steps squeeze_negative_axes
        reduce_sum_negative_axes_keepdims_random split_variable_parts_2d_opset18 top_k_smallest
        resize_upsample_scales_cubic_align_corners onehot_with_negative_axis range_int32_type_negative_delta
        nonmaxsuppression_limit_output_size cumsum_2d_negative_axis affine_grid_2d constant_pad_axes
        gather_negative_indices transpose_default
    """,
    "layers": """
        conv_with_strides_and_asymmetric_padding convtranspose_output_shape maxpool_2d_ceil lstm_with_peepholes
        gru_seq_length layer_normalization_3d_axis1_epsilon_expanded gelu_tanh_2_expanded attention_4d_gqa
        rotary_embedding_interleaved_expanded hardswish_expanded rms_normalization_2d_axis1
        group_normalization_epsilon batchnorm_example
    """,
    "branches, loops, sequences, optionals": """
        if loop11 scan9_sum if_seq loop13_seq identity_sequence identity_opt sequence_insert_at_front
        split_to_sequence_nokeepdims sequence_map_extract_shapes
    """,
    "words, and types that NumPy lacks": """
        equal_string_broadcast regex_full_match_basic ai_onnx_ml_label_encoder_string_int cast_FLOAT_to_BFLOAT16
        castlike_no_saturate_FLOAT_to_FLOAT8E5M2 cast_FLOAT16_to_INT4
        dynamicquantizelinear_max_adjusted_expanded training_dropout_zero_ratio_mask
    """,
}
NAMES = [f"test_{name}" for names in CASES.values() for name in names.split()]
TARGETS = ("cpu", "portable")


@functools.cache
def cases() -> dict[str, BackendCase]:
    return {case.name: case for case in backend_cases()}


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "render_report", lambda *_, **__: b"")  # takes longer than a small graph does


@pytest.mark.parametrize("name", NAMES)
def test_a_case_is_accepted_and_right(name: str) -> None:
    assert name in cases(), "onnx has renamed it"
    for number, target in enumerate(TARGETS):
        record = judge(cases()[name], target)
        if record.outcome == "not run" and not number:
            pytest.skip(f"this ONNX Runtime does not run it: {record.reason}")
        if target == "portable" and "operators outside ai.onnx" in record.reason:
            continue
        assert record.outcome == "right", f"{target}: {record.reason}"


def test_the_exam_sees_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(out: Path, model: ir.Model, *rest: Any, **named: Any) -> object:
        for node in model.graph:
            node.op_type = {"Abs": "Neg"}.get(node.op_type, node.op_type)
        return write_artifact(out, model, *rest, **named)

    monkeypatch.setattr(write, "write_artifact", wrong)
    record = judge(cases()["test_abs"], "cpu")
    assert record.outcome == "wrong"
    assert "off by" in record.reason


def test_the_exam_sees_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Iterator[object]:
        raise KeyError("lost")

    monkeypatch.setattr(work, "default_export", broken)
    record = judge(cases()["test_abs"], "cpu")
    assert (record.outcome, record.reason) == ("internal", "KeyError in test_backend.py:broken: 'lost'")


@pytest.mark.parametrize(
    ("wanted", "found", "said"),
    [
        (np.ones(2), np.ones(2), ""),
        (np.ones(2), np.ones(3), "y: shape [3] instead of [2]"),
        (np.ones(2), np.zeros(2), "y: off by 1"),
        (np.ones(2, np.float32), np.ones(2), "y: float64 instead of float32"),
        (np.array(["a"], object), np.array(["b"], object), "y: other text"),
        ([np.ones(1)], [np.ones(1), np.ones(1)], "y: 2 values instead of 1"),
        ([np.ones(1)], np.ones(1), "y: a tensor instead of a sequence"),
        (None, np.ones(1), "y: a tensor instead of nothing"),
        (np.array([np.nan]), np.array([np.nan]), ""),
    ],
)
def test_answers_are_compared_by_kind(wanted: object, found: object, said: str) -> None:
    assert difference({"y": wanted}, {"y": found}, 1e-3, 1e-7) == said


def test_a_missing_answer_is_a_difference() -> None:
    assert difference({"y": np.ones(1)}, {}, 1e-3, 1e-7) == "y is missing"


def test_few_accepted_cases_fail_the_exam() -> None:
    records = [plain(Record(f"c{i}", "cpu", "right" if i < 96 else "refused", opset=(9, 9))) for i in range(100)]
    assert counts_of(records)["cpu"] == {"right": 96, "refused": 4}
    assert failed(records) == ["cpu: 96 of 100 accepted, fewer than 97%"]
    assert failed(records[:97]) == []
    wrong = plain(Record("w", "portable", "wrong", "y: off by 1"))
    assert failed([wrong])[0] == "w for portable: wrong: y: off by 1"


def test_reasons_are_counted_without_what_is_particular() -> None:
    assert kind_of("input 'x' is [2, 3], off by 1.5e-3") == kind_of("input 'a::b' is [7], off by 2")


def test_the_table_says_what_was_counted() -> None:
    content: dict[str, Any] = {"onnx": "1", "onnxruntime": "2", "machine": "m", "date": "d"}
    content["records"] = [
        plain(Record("a", "cpu", "right", opset=(23, 17), rolled_back=["fuse-x: worse"])),
        plain(Record("b", "cpu", "refused", "input 'x' has no rank")),
        plain(Record("c", "cpu", "not run", "no kernel")),
    ]
    text = table(content)
    assert "| cpu | 3 | 2 | 1 (50.0%) | 1 | 0 | 0 |" in text
    assert "| input … has no rank | 1 |" in text
    assert "| fuse-x | 1 |" in text
    assert "The opset was raised in 1 files." in text


def test_no_case_is_chosen_twice() -> None:
    assert len(set(NAMES)) == len(NAMES) > 50
