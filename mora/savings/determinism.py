"""Whether preprocessing gives the same tensor every time: rows of augmented images cannot be kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mora.data.modality import Modality

# Transforms of torchvision and timm that draw at random and whose names do not begin with "Random".
DRAWING = ("AugMix", "AutoAugment", "ColorJitter", "ElasticTransform", "GaussianBlur", "RandAugment",
           "ScaleJitter", "TrivialAugment", "MixUp", "CutMix", "AugmentAndMix", "JPEG")  # fmt: skip
PROBES = ((97, 61), (224, 224), (40, 123))  # width, height
DRAWS = 4


def why_random(preprocess: Callable[[Any], Tensor], modality: Modality | None = None) -> str:
    """What in a preprocessing, of images or another modality, draws at random, in words; "" when nothing does."""
    plural = "images" if modality is None else modality.plural
    names = [name for name in steps(preprocess) if name.startswith(("Random", *DRAWING))]
    if names:
        return f"{plural} are augmented at random ({', '.join(dict.fromkeys(names))})"
    for image in probes() if modality is None else modality.probes():
        with random_state_kept():
            first = preprocess(image)
            for seed in range(DRAWS):
                reseed(seed)
                if not torch.equal(preprocess(image), first):
                    return f"{plural} are preprocessed differently from call to call"
    return ""


def steps(preprocess: Any) -> Iterator[str]:
    """The class names of a preprocessing and of everything composed in it."""
    yield type(preprocess).__name__
    inner = getattr(preprocess, "transforms", None)
    if isinstance(preprocess, torch.nn.Module):
        inner = [*(inner or []), *preprocess.children()] if not isinstance(inner, torch.nn.Module) else [inner]
    if callable(inner):
        inner = [inner]
    for step in inner or []:
        yield from steps(step)


def probes() -> list[Any]:
    """Images of noise, of several shapes: what tells one preprocessing from another."""
    from PIL import Image

    draw = np.random.Generator(np.random.PCG64(0))
    return [Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in PROBES]


def reseed(seed: int) -> None:
    """Seed every generator that a preprocessing may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Every generator as it was, after the block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
