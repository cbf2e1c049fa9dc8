"""What hears: exported, proved at lengths that were not traced, and tried with sound files.

Covers: load/export/sound_inputs.py, load/feeds.py, run/sounds.py, tasks/sound.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxopt
from onnxopt.artifact.package import check_golden
from onnxopt.cli.main import main
from onnxopt.errors import ExportError, InputError
from onnxopt.load.entry import load
from onnxopt.load.source.source import resolve
from onnxopt.probe.runners import GraphRunner
from onnxopt.run.answers import run_text
from onnxopt.run.generate.generator import Generator
from onnxopt.run.inputs.sound import read_wave
from tests.support.sounds import LABELS, LETTERS, sound_checkpoint, write_wave
from tests.support.tiny import tiny_tokenizer

Case = tuple[str, str, str, bool | None, dict[str, Any]]  # type, class, task, whether there is a mask, settings
LAYER: dict[str, Any] = {"feat_extract_norm": "layer"}
HEADS: list[Case] = [
    ("wav2vec2", "AutoModelForCTC", "automatic-speech-recognition", False, {}),
    ("wav2vec2", "AutoModelForCTC", "automatic-speech-recognition", True, LAYER),
    ("hubert", "AutoModelForAudioClassification", "audio-classification", True, LAYER),
    ("audio-spectrogram-transformer", "AutoModelForAudioClassification", "audio-classification", None, {}),
    ("whisper", "AutoModelForAudioClassification", "audio-classification", None, {}),
    ("unispeech-sat", "AutoModelForAudioFrameClassification", "audio-frame-classification", True, LAYER),
    ("wav2vec2", "AutoModelForAudioXVector", "audio-xvector", False, {}),
    ("data2vec-audio", "AutoModel", "audio-feature-extraction", True, {}),
]
SLOW: list[Case] = [
    ("wavlm", "AutoModelForCTC", "automatic-speech-recognition", False, {}),
    ("sew", "AutoModelForCTC", "automatic-speech-recognition", False, {}),
    ("wav2vec2-bert", "AutoModelForCTC", "automatic-speech-recognition", None, {}),
    ("parakeet_ctc", "AutoModelForCTC", "automatic-speech-recognition", None, {}),
]
CASES = [
    *(pytest.param(case, id=f"{case[0]}-{case[2]}-{case[3]}") for case in HEADS),
    *(pytest.param(case, id=f"{case[0]}-{case[2]}", marks=pytest.mark.slow) for case in SLOW),
]


@pytest.mark.parametrize("case", CASES)
def test_a_head_answers_like_torch_at_lengths_that_nobody_traced(case: Case, tmp_path: Path) -> None:
    import torch
    import transformers

    kind, auto_class, task, mask, settings = case
    folder = sound_checkpoint(kind, tmp_path / "model", auto_class, mask=mask, **settings)
    loaded = load(resolve(str(folder)))
    assert loaded.task == task
    names = [spec.name for spec in loaded.signature.inputs]
    assert ("attention_mask" in names) == (bool(mask) or kind in ("wav2vec2-bert", "parakeet_ctc"))
    network = getattr(transformers, auto_class).from_pretrained(folder).eval()
    runner = GraphRunner(loaded.model)
    axis = next((axis for axis in loaded.signature.inputs[0].axes[1:] if isinstance(axis, str)), "")
    for batch, length in ((1, 977), (2, 640), (3, 1203)) if axis else ((1, 0), (3, 0)):
        feeds = loaded.feeder.make({"batch": batch, **({axis: length} if axis else {})}, "right", seed=9)
        found = runner.run(feeds)[0]
        with torch.inference_mode():
            expected = network(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        for spec in loaded.signature.outputs:
            right = expected[spec.name].numpy()
            np.testing.assert_allclose(found[spec.name], right, atol=1e-4 * np.abs(right).max(), rtol=0)


def test_where_a_mask_does_not_export_rows_are_as_long_as_each_other(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForAudioXVector

    folder = sound_checkpoint("wavlm", tmp_path / "model", "AutoModelForAudioXVector", mask=True, **LAYER)
    fresh, kept = (load(resolve(str(folder))) for _ in range(2))
    network = AutoModelForAudioXVector.from_pretrained(folder).eval()
    for loaded in (fresh, kept):  # once exported, once out of the cache
        assert [spec.name for spec in loaded.signature.inputs] == ["input_values"]
        assert any("without a mask, for rows of a batch as long as each other, instead" in one for one in loaded.notes)
        feeds = loaded.feeder.make({"batch": 2, "samples": 1511}, "right", seed=4)
        waves = torch.from_numpy(feeds["input_values"])
        with torch.inference_mode():
            masked = network(waves, attention_mask=torch.ones(waves.shape, dtype=torch.int64)).embeddings.numpy()
        assert np.abs(masked - loaded.reference.run(feeds)["embeddings"]).max() < 1e-5 * np.abs(masked).max()
        found = GraphRunner(loaded.model).run(feeds)[0]["embeddings"]
        assert np.abs(masked - found).max() < 1e-4 * np.abs(masked).max()


def test_speech_becomes_the_text_that_transformers_makes_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    folder = sound_checkpoint("wav2vec2", tmp_path / "model", "AutoModelForCTC", mask=False)
    artifact = onnxopt.optimize(folder, out=tmp_path / "out", measure=False)
    assert check_golden(artifact.path) == []
    paths = [write_wave(tmp_path / "a.wav", 0.2), write_wave(tmp_path / "b.wav", 0.13, pitch=410.0)]
    result = run_text(artifact.path, [str(path) for path in paths])
    model, expected = AutoModelForCTC.from_pretrained(folder).eval(), []
    for path in paths:
        sound, rate = read_wave(path)
        given = Wav2Vec2FeatureExtractor.from_pretrained(folder)(sound, sampling_rate=rate, return_tensors="pt")
        with torch.inference_mode():
            ids = model(**given).logits.argmax(-1)[0]
        expected.append(Wav2Vec2CTCTokenizer.from_pretrained(folder).decode(ids))
    assert result.kind == "transcripts"
    assert list(result.transcripts) == expected
    assert result.lines()[0] == f"{paths[0]}: {expected[0]}"
    io = json.loads((artifact.path / "io.json").read_text(encoding="utf-8"))
    assert io["preprocessing"][0] == "16000 samples a second, channels averaged"
    assert "the blank, is left out" in io["postprocessing"][0]
    assert io["inputs"][0]["axes"] == ["batch", "samples"]
    with pytest.raises(InputError, match=r"a sound at once writes no tokens .*onnxopt run"):
        Generator(artifact.path)
    assert main(["generate", str(artifact.path), str(paths[0])]) == 2
    assert "try it with `onnxopt run`" in capsys.readouterr().err
    with pytest.raises(InputError, match="has 8 entries along its axis 'samples'; the artifact answers from 40 on"):
        run_text(artifact.path, [str(write_wave(tmp_path / "short.wav", 0.0005))])


def test_what_is_heard_when_is_said_in_seconds(tmp_path: Path) -> None:
    folder = sound_checkpoint("wavlm", tmp_path / "model", "AutoModelForAudioFrameClassification", mask=False)
    artifact = onnxopt.optimize(folder, out=tmp_path / "out", measure=False)
    result = run_text(artifact.path, [str(write_wave(tmp_path / "a.wav", 0.2))])
    assert result.kind == "frame_labels"
    assert {span.label for span in result.spans[0]} <= {f"LABEL_{index}" for index in range(LABELS)}
    assert all(0 <= span.start < span.end <= 0.2 and span.score > 0.5 for span in result.spans[0])
    assert len(LETTERS) != LABELS  # else the head might be that of letters


@pytest.mark.parametrize("name", ["speech_to_text", "moonshine"])
def test_a_pair_that_hears_any_length_is_refused_in_words(name: str, tmp_path: Path) -> None:
    import transformers

    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    wide = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "hidden_size": 32, "intermediate_size": 24}
    heads = {"encoder_num_attention_heads": 2, "decoder_num_attention_heads": 2}
    layers = {"encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
    config = transformers.AutoConfig.for_model(name, vocab_size=200, **sizes, **wide, **heads, **layers)
    transformers.AutoModelForSpeechSeq2Seq.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer(tmp_path / "model", gpt2=True)
    with pytest.raises(ExportError, match="of any length, of which its decoder must be told what is padding") as found:
        onnxopt.optimize(tmp_path / "model", out=tmp_path / "out", measure=False)
    assert "heads of CTC take any length" in str(found.value)


def test_what_draws_random_numbers_while_it_answers_is_refused_for_that(tmp_path: Path) -> None:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16, "flow_size": 16}
    ups = {"upsample_initial_channel": 16, "upsample_rates": [2, 2], "upsample_kernel_sizes": [4, 4]}
    blocks = {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 1]], "spectrogram_bins": 9}
    flows = {"prior_encoder_num_flows": 1, "prior_encoder_num_wavenet_layers": 1, "duration_predictor_num_flows": 1}
    config = transformers.VitsConfig(vocab_size=200, **sizes, **ups, **blocks, **flows)
    transformers.VitsModel(config).save_pretrained(tmp_path)
    tiny_tokenizer(tmp_path)
    with pytest.raises(ExportError, match="another one each time, since it draws random numbers"):
        load(resolve(str(tmp_path)))


def test_the_methods_of_a_model_take_sounds_by_their_paths(tmp_path: Path) -> None:
    folder = sound_checkpoint("hubert", tmp_path / "model", "AutoModelForAudioClassification", mask=False)
    model = onnxopt.Model(onnxopt.optimize(folder, out=tmp_path / "out", measure=False).path)
    path = str(write_wave(tmp_path / "a.wav", 0.1))
    labels = model.classify(path)
    assert isinstance(labels, dict)
    assert sorted(labels) == [f"LABEL_{index}" for index in range(LABELS)]
    assert abs(sum(labels.values()) - 1) < 1e-4
    with pytest.raises(InputError, match="a model for audio-classification cannot do that"):
        model.encode(path)
