"""The tiny CLIP with a third tower: log-mel features of a recording into the same kind of transformer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mora import tiny
from mora.system.files import pack_tensors, read_tensors, write_bytes
from mora.system.machine import need

if TYPE_CHECKING:
    from open_clip import CLIP, SimpleTokenizer
    from open_clip.transformer import VisionTransformer

# 2.56 s in frames of 10 ms, and mel bands; a token is 80 ms of all bands, by two convolutions over time.
FRAMES, BANDS, STRIP = 256, 64, 8
REACH, STEP = 5, 2  # frames that the first convolution sees, and moves by
WIDTH, BLOCKS, HEADS = 128, 3, 2
LARGEST = 1 << 26  # bytes of a file of weights
SILENCE = -1.6  # a feature of silence


def build() -> VisionTransformer:
    """A fresh audio tower: [N, 1, 256, 64] to the mean of its tokens, projected, [N, 128]."""
    need("open_clip", "the tiny CLIP")
    from open_clip.transformer import VisionTransformer

    size: Any = (FRAMES, BANDS)
    strip: Any = (STRIP, BANDS)
    width = int(tiny.config()["model_cfg"]["embed_dim"])
    tower = VisionTransformer(size, strip, WIDTH, BLOCKS, HEADS, 4.0, output_dim=width, pool_type="avg")
    tower.conv1 = nn.Sequential(
        nn.Conv2d(1, WIDTH, (REACH, BANDS), (STEP, 1), (REACH // 2, 0)),
        nn.GELU(),
        nn.Conv2d(WIDTH, WIDTH, (STRIP // STEP, 1), (STRIP // STEP, 1)),
    )
    return tower


def save(tower: nn.Module, path: Path) -> None:
    """Write the tower's weights in float16; the file appears by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {name: weight.detach().half() for name, weight in tower.state_dict().items()}
    write_bytes(path, pack_tensors(halves, {"format": "pt", "model": "tiny-audio"}))


def load(path: Path) -> tuple[CLIP, tiny.Preprocess, SimpleTokenizer]:
    """The tiny CLIP with `model.audio` from a file of `save`, as `tiny.load`.

    Raises ValueError for weights of another tower, OSError for a file that cannot be read.
    """
    model, preprocess, tokenizer = tiny.load()
    with torch.random.fork_rng(devices=[]):  # the fresh weights are thrown away
        tower = build()
    weights, _ = read_tensors(path, LARGEST)
    refuse_other(path, weights, tower.state_dict())
    tower.load_state_dict({name: weight.float() for name, weight in weights.items()})
    model.audio = tower.eval()
    return model, preprocess, tokenizer


def refuse_other(path: Path, weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """ValueError unless a file holds the tensors of the tower, of its shapes."""
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if found != (wanted := {name: tuple(weight.shape) for name, weight in expected.items()}):
        other = next(name for name in {**wanted, **found} if found.get(name) != wanted.get(name))
        raise ValueError(
            f"{path}: got {other} of shape {found.get(other)}, expected {wanted.get(other)}, as the audio tower has it"
        )
