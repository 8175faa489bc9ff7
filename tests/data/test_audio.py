"""Recordings: four formats decode to one, features are the library's, and what is wrong has a name."""

import importlib
import re

import numpy
import pytest
import torch

pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("transformers")

import transformers

from mora.data import audio
from mora.data.audio import BrokenAudioError, ClapFeatures, LogMel, Sound, decode
from mora.data.modalities import modality
from tests.data.stamps import encoded, tone


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_every_format_decodes_to_the_mean_of_its_channels(kind: str) -> None:
    left, right = tone(440, 0.5, 44_100), tone(440, 0.5, 44_100, loud=0.1)
    sound = decode(encoded(numpy.concatenate([left, right], axis=1), 44_100, kind), "it")
    assert (sound.rate, sound.channels, sound.samples.dtype) == (44_100, 2, torch.float32)
    expected = torch.from_numpy((left + right)[:, 0] / 2)
    begin = 1105 if kind == "MP3" and len(sound.samples) > len(expected) else 0  # what its encoder puts in front
    got = sound.samples[begin : begin + len(expected)]
    assert (got[2000:20000] - expected[2000:20000]).abs().max() < (1e-4 if kind in ("WAV", "FLAC") else 0.05)


def test_resampling_keeps_what_is_heard() -> None:
    sound = decode(encoded(tone(440, 0.5, 44_100), 44_100, "WAV"), "it")
    got, expected = sound.at(16_000), torch.from_numpy(tone(440, 0.5, 16_000)[:, 0])
    assert len(got) == 8_000 and (got - expected)[200:-200].abs().max() < 1e-3
    assert sound.at(44_100) is sound.samples


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"no sound at all", "it is none of WAV, FLAC, Ogg, MP3"),
        (encoded(tone(440, 0.0), kind="WAV"), "it holds no samples"),
        (encoded(tone(440), kind="AIFF"), "it is AIFF, expected WAV, FLAC, Ogg or MP3"),
        (encoded(tone(440), 2_000, "WAV"), "its rate is 2,000 Hz, expected one from 4,000 to 384,000"),
        (encoded(tone(1, 601, 4_000), 4_000, "FLAC"), "it is 601 s long, expected at most 600 s"),
        (encoded(tone(440, 0.01, channels=33), kind="WAV"), "it has 33 channels, expected at most 32"),
        (encoded(tone(440, 1.0), kind="FLAC")[:3000], ""),
        (encoded(tone(440, 1.0), kind="OGG")[:30], ""),
    ],
    ids=[
        "empty",
        "text",
        "no samples",
        "AIFF",
        "2 kHz",
        "long",
        "channels",
        "FLAC cut",
        "Ogg cut",
    ],  # an Ogg's bytes vary
)
def test_what_cannot_be_read_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenAudioError, match=f"^here: the recording cannot be read: {re.escape(reason)}"):
        decode(data, "here")


def test_values_that_are_no_numbers_are_refused() -> None:
    soundfile, data = pytest.importorskip("soundfile"), __import__("io").BytesIO()
    samples = tone(440)
    samples[100] = float("nan")
    soundfile.write(data, samples, 16_000, format="WAV", subtype="FLOAT")
    with pytest.raises(BrokenAudioError, match="values that are not finite"):
        decode(data.getvalue(), "it")


def test_what_stands_out_is_told() -> None:
    audio = modality("audio")
    told = [
        audio.remark(audio.read(encoded(samples, rate, "WAV")))
        for samples, rate in (
            (tone(440), 16_000),
            (tone(440, 10.1, channels=2), 16_000),
            (tone(440, loud=5e-4), 16_000),
            (tone(440, rate=8_000), 8_000),
        )
    ]
    assert told == ["", "longer than 10 s, of several channels", "silent", "below 16,000 Hz"]
    assert [audio.remark(probe) for probe in audio.probes()] == ["below 16,000 Hz", "", "longer than 10 s"]


def test_features_are_those_of_the_library() -> None:
    sound = Sound(torch.randn(20_000, generator=torch.Generator().manual_seed(0)) / 4, 16_000, 1)
    mel = LogMel(seconds=1.25)
    samples = (sound.samples / sound.samples.abs().max()).numpy()
    expected = transformers.audio_utils.spectrogram(
        samples, numpy.hanning(401)[:-1], frame_length=400, hop_length=160, power=2.0,
        mel_filters=audio.filters(mel).double().numpy(), mel_floor=1e-10 * 400,
    )  # fmt: skip
    got = mel(sound)
    assert tuple(got.shape) == mel.shape == (1, 125, 64)
    dB = 10 * torch.from_numpy(expected / 400).log10().T[:125]  # noqa: N806
    assert (got[0].double() * mel.spread + mel.centre - dB).abs().max() < 1e-2


def test_features_are_cut_filled_and_as_loud() -> None:
    mel, wave = LogMel(seconds=0.5), torch.from_numpy(tone(440, 1.0)[:, 0])
    whole, half, low = (mel(Sound(samples, 16_000, 1)) for samples in (wave, wave[:8_000], wave / 50))
    assert torch.equal(whole, half) and (whole - low).abs().max() < 1e-3
    short = mel(Sound(wave[:3_200], 16_000, 1))
    assert torch.equal(short[:, 22:], mel.silence()[:, 22:]) and not torch.equal(short[:, :20], mel.silence()[:, :20])
    assert torch.equal(mel(Sound(torch.zeros(100), 16_000, 1)), mel.silence())


def test_clap_features_are_its_extractors_cut_the_same_every_time() -> None:
    extractor = transformers.ClapFeatureExtractor(feature_size=16, sampling_rate=8_000, max_length_s=1, hop_length=80)
    take = ClapFeatures(extractor)
    long = Sound(torch.from_numpy(tone(440, 1.5, 16_000)[:, 0]), 16_000, 1)
    assert torch.equal(take(long), take(long)) and take(long).shape[-1] == 16
    short = Sound(long.samples[:4_000], 16_000, 1)
    expected = extractor(short.at(8_000).numpy(), sampling_rate=8_000, return_tensors="pt")["input_features"][0]
    assert torch.equal(take(short), expected.float())


def test_the_packages_are_asked_for_by_name(monkeypatch) -> None:
    def absent(name: str):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"reading recordings needs soundfile: pip install 'mora-kernels\[audio\]'"):
        decode(b"", "it")
    with pytest.raises(ImportError, match=r"resampling recordings needs soxr: pip install 'mora-kernels\[audio\]'"):
        Sound(torch.zeros(4), 8_000, 1).at(16_000)
