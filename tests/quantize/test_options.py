"""What `--precision` means for a decoder.

Covers: qmath/precision.py
"""

from __future__ import annotations

import pytest

from onnxopt.errors import InputError
from onnxopt.qmath.precision import Precision
from onnxopt.quantize.options import QuantizeOptions
from onnxopt.spec import Provider, Target


@pytest.mark.parametrize(
    ("asked", "choices", "percent"),
    [
        ("int8", {"int8-weights:128", "int8-weights:64", "int8-weights:32"}, 2),
        ("int8-weights", {"int8-weights:128", "int8-weights:64", "int8-weights:32"}, 2),
        ("int8-weights:32", {"int8-weights:32"}, 2),
        ("int4-weights", {"int4-weights:128", "int4-weights:64", "int8-weights:128"}, 8),
        ("int4-weights:32:asymmetric", {"int4-weights:32:asymmetric"}, 8),
        (
            "auto",
            {"int4-weights:128", "int4-weights:64", "int8-weights:128", "int8-weights:64", "int8-weights:32"},
            2,
        ),
    ],
)
def test_layers_of_a_decoder_may_get(asked: str, choices: set[str], percent: int) -> None:
    precision = QuantizeOptions.parse_precision(asked, Target("cpu"))
    assert precision is not None
    assert precision != "fp16"
    assert precision != "bf16"
    options = QuantizeOptions(precision, asked=asked)
    assert {str(one) for one in options.of_decoder()} == choices
    assert options.default_budget("perplexity").limit == pytest.approx(1 + percent / 100)
    assert options.default_budget("cosine").limit == 0.995


def test_float_is_no_quantization() -> None:
    assert QuantizeOptions.parse_precision("fp32", Target("cpu")) is None
    assert Precision.parse("fp32") == Precision()


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize(
    ("asked", "kind"), [("fp16", "fp16"), ("bf16", "bf16"), ("auto", "fp16"), (" FP16 ", "fp16"), ("bf16:io", "bf16")]
)
def test_a_gpu_gets_16_bits(provider: Provider, asked: str, kind: str) -> None:
    assert QuantizeOptions.parse_precision(asked, Target(provider)) == kind


@pytest.mark.parametrize("provider", ["cpu", "portable"])
@pytest.mark.parametrize("asked", ["fp16", "bf16"])
def test_16_bits_are_for_gpus(provider: Provider, asked: str) -> None:
    with pytest.raises(InputError, match=f"{asked} is not made for target {provider}"):
        QuantizeOptions.parse_precision(asked, Target(provider))


@pytest.mark.parametrize("asked", ["mixed", "int8", "int8-dynamic"])
def test_cuda_has_no_int8(asked: str) -> None:
    with pytest.raises(InputError, match="no int8 linear layers"):
        QuantizeOptions.parse_precision(asked, Target("cuda"))


@pytest.mark.parametrize("asked", ["int4-weights", "int8-weights:32"])
def test_weights_alone_do_without_samples(asked: str) -> None:
    options = QuantizeOptions(Precision.parse(asked), calibration="none", asked=asked)
    assert options.calibration == "none"


@pytest.mark.parametrize("asked", ["int8", "int8-dynamic", "auto"])
def test_what_is_seen_by_samples_takes_some(asked: str) -> None:
    precision = QuantizeOptions.parse_precision(asked, Target("cpu"))
    assert precision == "auto" or isinstance(precision, Precision)
    with pytest.raises(InputError, match=f"{asked} takes samples"):
        QuantizeOptions(precision, calibration="none", asked=asked)
