"""What it costs that another adapter computes next: `mora.set_adapter`, or a `mora.using` block, and the call after it.

The tiny CLIP's image tower with two adapters of one configuration, one image, no gradients. "stays" is the call alone;
where W_eff is kept (`mora.keeping`) a switch finds that of the other adapter, else every call builds its own.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mora
from benchmarks.case import Case, Provider, Shape
from benchmarks.sizes import Scale
from mora import tiny

NAME = "switch"
TITLE = "Another adapter"
BASELINE = "stays"
PROVIDERS = ("stays", "set_adapter", "using", "set_adapter alone")


def shapes(scale: Scale) -> list[Shape]:
    """W_eff kept and not."""
    return [{"kept": kept, "batch": 1, "blocks": 2 if scale.smoke else 4} for kept in (True, False)]


def build(shape: Shape, scale: Scale) -> Case:
    """The case of one shape."""
    model, _, _ = tiny.load()
    model = model.to(scale.device).eval()
    names = ("films", "food")
    mora.patch(model, name=names[0], dropout=0.0, last_layers=shape["blocks"])
    mora.add_adapter(model, names[1], dropout=0.0, last_layers=shape["blocks"])
    for number, name in enumerate(names):
        move(model, name, number)
    image = torch.randn(shape["batch"], 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, generator=torch.Generator().manual_seed(3))
    image = image.to(scale.device)
    turn = [0]

    def other() -> str:
        turn[0] += 1
        return names[turn[0] % 2]

    def stays() -> Tensor:
        with torch.no_grad():
            return model.encode_image(image)

    def set_adapter() -> Tensor:
        mora.set_adapter(model, other(), trainable=False)
        return stays()

    def using() -> Tensor:
        with mora.using(model, other()):
            return stays()

    def alone() -> object:
        return mora.set_adapter(model, other(), trainable=False)

    runs: dict[str, Callable[[], object]] = dict(zip(PROVIDERS, (stays, set_adapter, using, alone), strict=True))
    if shape["kept"]:
        context, block = contextvars.copy_context(), mora.keeping(model)  # one for all: what one keeps is the others'
        context.run(block.__enter__)
        model.held = block
        runs = {name: functools.partial(context.run, run) for name, run in runs.items()}
    providers = {name: Provider(run, check(model, image, names), capturable=False) for name, run in runs.items()}
    return Case(NAME, shape, BASELINE, providers)


@torch.no_grad()
def move(model: Any, name: str, seed: int) -> None:
    """Away from the start, so that adapters differ."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in mora.adapter_parameters(model, name):
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))


def check(model: Any, image: Tensor, names: tuple[str, str]) -> Callable[[], None]:
    """Each adapter computes what it computes without the other, kept or not, and they differ."""

    def run() -> None:
        found = {}
        for kept in (False, True):
            for name in names:
                with torch.no_grad(), mora.using(model, name), keeping(model, kept):
                    found[kept, name] = model.encode_image(image)
        for name in names:
            torch.testing.assert_close(found[False, name], found[True, name], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found[True, names[0]], found[True, names[1]], rtol=1e-3)

    return run


def keeping(model: Any, kept: bool) -> contextlib.AbstractContextManager[object]:
    """`mora.keeping`, or nothing."""
    return mora.keeping(model) if kept else contextlib.nullcontext()
