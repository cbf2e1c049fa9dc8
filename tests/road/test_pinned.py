"""Choices of another build are taken over where they fit, and refused in words where they do not.

Covers: road/pinned.py, quantize/workplace.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import InputError
from onnxopt.quantize.workplace import Settled, settled_by
from onnxopt.records.manifest import FormRecord, Manifest, PartRecord, Shipped
from onnxopt.records.quantization import NOT_FASTER, LayerRecord, QuantizationRecord
from onnxopt.road.options import Options
from onnxopt.road.pinned import Pins
from onnxopt.spec import Budget, Signature, Target, Workload

KIND = "12 heads of 32"
FORMS = (
    FormRecord(name="lower-attention", kind=KIND, form="MultiHeadAttention"),
    FormRecord(name="remove-padding", form="padding kept"),
)
CPU = Target("cpu", 2)


def manifest(**more: Any) -> Manifest:
    facts: dict[str, Any] = {
        "name": "x",
        "task": "onnx",
        "signature": Signature((), ()),
        "target": Target("cpu", 8),
        "workload": Workload(),
        "budget": Budget(),
        "forms": FORMS,
        "shipped": Shipped(),
    }
    return Manifest(**(facts | more))


def saved(folder: Path, found: Manifest) -> Path:
    path = folder / "pins.json"
    path.write_text(found.to_json(), encoding="utf-8")
    return path


def read(path: Path | str, target: Target = CPU, **more: Any) -> Pins | None:
    return Pins.read(Options.of(forms_from=path, **more), target)


def test_nothing_is_taken_over_unless_it_is_asked_for() -> None:
    assert Pins.read(Options.of(), CPU) is None


def test_forms_are_read_from_a_file_of_any_name_and_from_a_folder(tmp_path: Path) -> None:
    path = saved(tmp_path, manifest())
    (tmp_path / "manifest.json").write_bytes(path.read_bytes())
    for asked in (path, str(path), tmp_path):
        pins = read(asked)
        assert pins is not None
        pinned = pins.of()
        assert pinned.forms == {
            ("lower-attention", KIND): "MultiHeadAttention",
            ("remove-padding", ""): "padding kept",
        }
        assert pinned.kernels == pinned.forms
        pinned.require_same(dict(pinned.forms))


@pytest.mark.parametrize("form", ["fused", "original"])
def test_what_was_not_lowered_for_the_target_pins_no_kernels(tmp_path: Path, form: Any) -> None:
    pins = read(saved(tmp_path, manifest(shipped=Shipped(form=form, reason="slower"))))
    assert pins is not None
    assert pins.of().kernels is None
    pins.of().require_same({})
    assert pins.of().shipped.form == form


@pytest.mark.parametrize(
    ("change", "target", "more", "said"),
    [
        ({}, Target("portable"), {}, "made for cpu, this build is for portable; add --target cpu"),
        (
            {"forms": (FormRecord(name="lower-attention", form="Sdpa2"),)},
            CPU,
            {},
            "no pass here has the form 'Sdpa2' of lower-attention; use the version of onnxopt that made it",
        ),
        (
            {"forms": (FormRecord(name="lower-attention", kind=KIND, form="padding kept"),)},
            CPU,
            {},
            f"no pass here has the form 'padding kept' of lower-attention ({KIND})",
        ),
        (
            {"forms": (FormRecord(name="lower-dreams", form="x"),)},
            CPU,
            {},
            "the form 'x' of lower-dreams",
        ),
        ({}, CPU, {"retune": True}, "forms are taken over or measured anew, not both; drop --retune"),
        ({}, CPU, {"prune": "ffn=auto"}, "how much `ffn=auto` takes is measured, and no manifest holds it"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_at_once(
    change: dict[str, Any], target: Target, more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read(saved(tmp_path, manifest(**change)), target, **more)
    assert said in str(caught.value)
    assert "--forms-from" in str(caught.value)


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    for content, said in (("{", "not valid JSON"), ("{}", "not a manifest"), ("[]", "no JSON object")):
        path = tmp_path / "pins.json"
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=said):
            read(path)
    with pytest.raises(InputError, match=r"no absent\.json"):
        read(tmp_path / "absent.json")


def test_forms_of_a_pass_of_the_users_own_are_left_to_it(tmp_path: Path) -> None:
    path = saved(tmp_path, manifest(forms=(FormRecord(name="my-pass", form="mine"),)))
    pins = read(path, passes="my_rules.py")
    assert pins is not None
    assert pins.of().forms == {("my-pass", ""): "mine"}


@pytest.mark.parametrize(
    ("forms", "said"),
    [
        (
            {("lower-attention", KIND): "Attention", ("remove-padding", ""): "padding kept"},
            f"lower-attention ({KIND}) is 'Attention' here and is 'MultiHeadAttention' there;",
        ),
        ({("remove-padding", ""): "padding kept"}, "has none here and is 'MultiHeadAttention' there;"),
        (
            {("lower-gelu", ""): "as it is"},
            f"lower-attention ({KIND}) has none here and is 'MultiHeadAttention' there (and 2 more);",
        ),
    ],
)
def test_a_build_with_other_forms_is_refused(forms: dict[tuple[str, str], str], said: str, tmp_path: Path) -> None:
    pins = read(saved(tmp_path, manifest()))
    assert pins is not None
    with pytest.raises(InputError) as caught:
        pins.of().require_same(forms)
    assert said in str(caught.value)
    assert "use the manifest of a build of the same source" in str(caught.value)


def test_a_manifest_without_a_record_of_forms_and_one_of_another_kind_are_refused(tmp_path: Path) -> None:
    old = read(saved(tmp_path, manifest(forms=None)))
    assert old is not None
    with pytest.raises(InputError, match="recorded no forms"):
        old.of()
    with pytest.raises(InputError, match="one graph, this build is of an encoder and a decoder"):
        old.of("decoder")
    part = PartRecord(file="x", signature=Signature((), ()), golden="g", shipped=Shipped(), forms=FORMS)
    pair = read(saved(tmp_path, manifest(forms=None, shipped=None, parts={"encoder": part, "decoder": part})))
    assert pair is not None
    assert pair.of("decoder").forms[FORMS[1].name, ""] == "padding kept"
    with pytest.raises(InputError, match="an encoder and a decoder, this build is of one graph"):
        pair.of()


def test_what_was_measured_of_a_graph_in_fewer_bits_is_read_from_its_record() -> None:
    layer = LayerRecord(precision="int8", reason="x; int8 in prompts")
    slow = f"{NOT_FASTER} (0.91x)"
    assert settled_by(None) == Settled()
    assert settled_by(QuantizationRecord(asked="int8", shipped=True)) == Settled()
    assert settled_by(QuantizationRecord(asked="int8", shipped=False, reason=slow)) == Settled(slow)
    assert settled_by(QuantizationRecord(asked="int8", shipped=False, reason="beyond its budget: …")) == Settled()
    assert settled_by(QuantizationRecord(asked="a", shipped=True, layers={"x": layer})) == Settled(both_ways=True)
