"""Encoded recordings to samples and log-mel features: soundfile decodes, soxr resamples; what is broken is named."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mora.data.modality import BrokenInputError, Modality
from mora.system.machine import need

# soundfile reads two dozen formats, raw samples among them, that nobody has recordings in: they stay closed.
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
LARGEST_SOUND = 1 << 28  # bytes of an encoded recording
LONGEST = 600.0  # seconds
RATES = (4_000, 384_000)  # hertz
MOST_CHANNELS = 32
# A recording is silent when no sample is above this share of the largest there is: 60 dB below it.
SILENT = 1e-3
LONG, LOW = 10.0, 16_000  # seconds and hertz beyond which a recording is remarked on: most models hear no more
LEAST_POWER = 1e-10  # which features in dB take for silence, as `ClapFeatureExtractor` does


class BrokenAudioError(BrokenInputError):
    """A recording that cannot be read; the message names it."""


@dataclass(frozen=True)
class Sound:
    """A decoded recording: `samples` float32 [T], the mean of its `channels`, at `rate` hertz."""

    samples: Tensor
    rate: int
    channels: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate

    @property
    def silent(self) -> bool:
        """Whether no sample is above `SILENT`."""
        return bool(self.samples.abs().max() <= SILENT)

    def at(self, rate: int) -> Tensor:
        """The samples at another rate, float32 [T'], by soxr's best quality but one."""
        if rate == self.rate:
            return self.samples
        soxr = need("soxr", "resampling recordings")
        return torch.from_numpy(soxr.resample(self.samples.numpy(), self.rate, rate, quality="HQ"))


def decode(data: bytes, where: str) -> Sound:
    """A recording in WAV, FLAC, Ogg or MP3, its channels mixed to one.

    Raises:
        BrokenAudioError: `data` is no recording, is empty or cut off, holds values that are not finite, is longer than
            `LONGEST` seconds or `LARGEST_SOUND` bytes, or at a rate outside `RATES`; the message starts with `where`.
        ImportError: soundfile is not installed.
    """
    soundfile = need("soundfile", "reading recordings")
    try:
        if not data:
            raise ValueError("it is empty")
        if len(data) > LARGEST_SOUND:
            raise ValueError(f"it is of {len(data):,} bytes, expected at most {LARGEST_SOUND:,}")
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            refuse_unusual(file)
            told = file.frames
            samples = torch.from_numpy(file.read(told, dtype="float32", always_2d=True))
            if len(samples) < told:
                raise ValueError(f"it ends after {len(samples):,} of {told:,} samples")
            if not bool(samples.isfinite().all()):
                raise ValueError("it holds values that are not finite")
            return Sound(samples.mean(dim=1), file.samplerate, file.channels)
    except Exception as error:  # of libsndfile, about files that it did not write
        reason = str(error) or repr(error)
        if "Format not recognised" in reason:
            reason = "it is none of WAV, FLAC, Ogg, MP3"
        raise BrokenAudioError(f"{where}: the recording cannot be read: {reason}") from error


def refuse_unusual(file: Any) -> None:
    """ValueError for an open recording without samples, too long, or of another kind than people have."""
    if file.format not in FORMATS:
        raise ValueError(f"it is {file.format}, expected WAV, FLAC, Ogg or MP3")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise ValueError(f"its rate is {file.samplerate:,} Hz, expected one from {RATES[0]:,} to {RATES[1]:,}")
    if file.channels > MOST_CHANNELS:
        raise ValueError(f"it has {file.channels:,} channels, expected at most {MOST_CHANNELS}")
    if file.frames < 1:
        raise ValueError("it holds no samples")
    if file.frames > LONGEST * file.samplerate:
        raise ValueError(f"it is {file.frames / file.samplerate:,.0f} s long, expected at most {LONGEST:,.0f} s")


class Audio(Modality):
    """Recordings, their channels mixed to one, at the rate they have: a model's preprocessing takes its own."""

    name, plural, largest = "audio", "recordings", LARGEST_SOUND

    def decode(self, data: bytes, where: str) -> Sound:
        """As `decode`."""
        return decode(data, where)

    def remark(self, value: Sound) -> str:
        """What of silent, long, made at a low rate and in several channels it is."""
        words = {
            "silent": value.silent,
            f"longer than {LONG:g} s": value.seconds > LONG,
            f"below {LOW:,} Hz": value.rate < LOW,
            "of several channels": value.channels > 1,
        }
        return ", ".join(word for word, so in words.items() if so)

    def probes(self) -> list[Sound]:
        """Noise at three rates, of several lengths."""
        made = torch.Generator().manual_seed(0)
        sizes = ((8_000, 3_000), (16_000, 70_001), (44_100, 500_000))  # rate, samples
        return [Sound(torch.randn(length, generator=made) / 4, rate, 1) for rate, length in sizes]


@dataclass(frozen=True)
class LogMel:
    """A recording as log-mel features float32 [1, T, mels]: dB below the loudest sample, shifted and scaled.

    Called with a `Sound` of any rate: resampled, its loudest sample made 1, cut or filled with silence to `seconds`.
    The filters are transformers' `mel_filter_bank` (Slaney's scale and norm).

    Attributes:
        rate: samples in a second.
        seconds: what is heard of a recording.
        window, hop: of the short-time Fourier transform, in samples; T = seconds * rate / hop.
        mels: bands from `low` hertz to half the rate.
        centre, spread: what dB are shifted and divided by.
    """

    rate: int = 16_000
    seconds: float = 2.56
    window: int = 400
    hop: int = 160
    mels: int = 64
    low: float = 50.0
    centre: float = -60.0
    spread: float = 25.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """[1, T, mels]."""
        return 1, math.ceil(self.seconds * self.rate / self.hop), self.mels

    def __call__(self, sound: Sound) -> Tensor:
        """Features [1, T, mels] of a recording."""
        length = self.shape[1] * self.hop
        samples = sound.at(self.rate)[:length]
        peak = samples.abs().max() if len(samples) else samples.new_zeros(())
        samples = samples / peak.clamp(min=SILENT)  # silence stays silence
        samples = torch.nn.functional.pad(samples, (0, length - len(samples)))
        window = torch.hann_window(self.window)
        spectrum = torch.stft(samples, self.window, self.hop, window=window, return_complex=True)[:, :-1]
        return self.scaled(filters(self).T @ spectrum.abs().square() / self.window).T[None].contiguous()

    def scaled(self, power: Tensor) -> Tensor:
        """Powers in dB, shifted and divided."""
        return (10 * power.clamp(min=LEAST_POWER).log10() - self.centre) / self.spread

    def silence(self) -> Tensor:
        """The features of a recording of zeros: what stands for one that is missing."""
        return self.scaled(torch.zeros(self.shape))


@lru_cache(maxsize=8)
def filters(mel: LogMel) -> Tensor:
    """The mel filters, float32 [window / 2 + 1, mels]."""
    audio_utils = need("transformers.audio_utils", "log-mel features")
    bank = audio_utils.mel_filter_bank(
        num_frequency_bins=mel.window // 2 + 1, num_mel_filters=mel.mels, min_frequency=mel.low,
        max_frequency=mel.rate / 2, sampling_rate=mel.rate, norm="slaney", mel_scale="slaney",
    )  # fmt: skip
    return torch.from_numpy(bank).float()


@dataclass(frozen=True)
class ClapFeatures:
    """A recording as features float32 [1 or 4, T, mels] in dB, by CLAP's own `ClapFeatureExtractor`.

    Recordings longer than it takes are cut: the extractor itself would draw a piece at random.

    Attributes:
        extractor: `transformers.ClapFeatureExtractor.from_pretrained(...)`.
    """

    extractor: Any

    def __call__(self, sound: Sound) -> Tensor:
        """Features [1 or 4, T, mels] of a recording."""
        rate, seconds = self.extractor.sampling_rate, self.extractor.max_length_s
        samples = sound.at(rate)[: int(rate * seconds)].numpy()
        made = self.extractor(samples, sampling_rate=rate, return_tensors="pt")
        features: Tensor = made["input_features"][0].float()
        return features
