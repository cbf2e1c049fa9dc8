"""What a model of sound takes is found by trying: shapes, least lengths, masks.

Covers: load/export/sound_inputs.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxopt.errors import ExportError
from onnxopt.load.export.sound_inputs import Heard, sound_inputs
from tests.support.sounds import sound_checkpoint


def _heard(kind: str, auto_class: str, folder: Path, settings: dict[str, Any] | None = None, **own: Any) -> Heard:
    import transformers

    sound_checkpoint(kind, folder, auto_class, **own)
    network = getattr(transformers, auto_class).from_pretrained(folder).eval()
    return sound_inputs(network, network.config, settings or {}, None)


@pytest.mark.parametrize("kernels", [(10, 3, 3), (12, 4, 2)])
def test_waves_are_as_long_as_convolutions_look_at_together(kernels: tuple[int, ...], tmp_path: Path) -> None:
    heard = _heard("wav2vec2", "AutoModelForCTC", tmp_path, conv_kernel=kernels)
    assert [(spec.name, spec.axes) for spec in heard.inputs] == [("input_values", ("batch", "samples"))]
    reach = (kernels[0] - 1) + 5 * (kernels[1] - 1) + 5 * 2 * (kernels[2] - 1) + 1  # strides 5 and 2 in front
    assert heard.least == {"samples": reach}
    assert heard.usual["samples"] > 4 * reach


def test_statistics_over_frames_need_more_of_them(tmp_path: Path) -> None:
    plain = _heard("wav2vec2", "AutoModelForCTC", tmp_path / "plain").least["samples"]
    assert (
        _heard("wav2vec2", "AutoModelForAudioXVector", tmp_path / "voices").least["samples"] >= plain + 8 * 20
    )  # kernels of 5 and 3, the second stretched by 2: nine frames, each 20 samples further


@pytest.mark.parametrize(
    ("norm", "settings", "masked"),
    [
        ("group", {}, False),
        ("layer", {}, True),
        ("group", {"return_attention_mask": True}, True),
        ("layer", {"return_attention_mask": False}, False),
    ],
)
def test_a_mask_is_taken_where_the_processor_makes_one(
    norm: str,
    settings: dict[str, Any],
    masked: bool,  # noqa: FBT001  a parameter of the test
    tmp_path: Path,
) -> None:
    heard = _heard("hubert", "AutoModelForCTC", tmp_path, settings, feat_extract_norm=norm)
    assert [spec.name for spec in heard.inputs[1:]] == (["attention_mask"] if masked else [])


def test_features_have_open_frames_or_as_many_as_the_config_says(tmp_path: Path) -> None:
    open_frames = _heard("wav2vec2-bert", "AutoModelForCTC", tmp_path / "open", feature_projection_input_dim=22)
    assert open_frames.inputs[0].axes == ("batch", "frames", 22)
    spectrogram = _heard(
        "audio-spectrogram-transformer", "AutoModelForAudioClassification", tmp_path / "fixed", max_length=44
    )
    assert [spec.axes for spec in spectrogram.inputs] == [("batch", 44, 24)]
    encoder = _heard("whisper", "AutoModelForAudioClassification", tmp_path / "turned", max_source_positions=30)
    assert [spec.axes for spec in encoder.inputs] == [("batch", 20, 60)]
    assert not (spectrogram.least or encoder.least)


def test_what_runs_on_no_known_shape_is_refused(tmp_path: Path) -> None:
    import transformers

    sound_checkpoint("wav2vec2", tmp_path, "AutoModelForCTC")
    network = transformers.AutoModelForCTC.from_pretrained(tmp_path).eval()

    def forward(input_values: Any, attention_mask: Any = None, *, return_dict: bool = True) -> Any:
        raise ValueError("three channels are needed")

    network.forward = forward
    with pytest.raises(ExportError, match=r"Wav2Vec2ForCTC runs on no waves .*three channels are needed"):
        sound_inputs(network, network.config, {}, None)
