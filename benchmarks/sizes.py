"""How large the cases are: as published on a GPU, shrunk by one rule on a CPU, and toys in a smoke test.

The rule for a CPU: a batch is divided by 32 where a single layer runs and by 128 where a whole model runs, and is at
least 1. Widths, tokens, depths and ranks stay. ViT-L/14 is left to GPUs, and `torch.compile` to the published widths.
"""

from __future__ import annotations

from typing import NamedTuple

CPU_DIVISOR = {"layer": 32, "model": 128}
RANK, ALPHA, DROPOUT = 4, 0.01, 0.1  # Food-101's published recipe: 4 common + 4 specific


class Scale(NamedTuple):
    """Where and how large a run is: `device` is "cpu" or "cuda", `smoke` means toys."""

    device: str
    smoke: bool

    def batches(self, kind: str, published: tuple[int, ...]) -> list[int]:
        """The batches of a level, each once and in order; `kind` is "layer" or "model"."""
        if self.smoke:
            return [2]
        divisor = CPU_DIVISOR[kind] if self.device == "cpu" else 1
        return list(dict.fromkeys(max(1, batch // divisor) for batch in published))


class Width(NamedTuple):
    """One tower's width: of the other tower, tokens of a sample, and the CLIP it belongs to."""

    modality: str
    width: int
    other: int
    tokens: int
    model: str


WIDTHS = (
    Width("image", 768, 512, 197, "ViT-B/16"),
    Width("image", 1024, 768, 257, "ViT-L/14"),
    Width("image", 1280, 1024, 257, "ViT-H/14"),
    Width("image", 1664, 1280, 257, "ViT-bigG/14"),
    Width("text", 512, 768, 77, "ViT-B/16"),
    Width("text", 768, 1024, 77, "ViT-L/14"),
)
TOYS = (Width("image", 48, 32, 5, "toy"),)
PUBLISHED = ("ViT-B/16",)  # the width at which the paper's recipes run


def widths(scale: Scale) -> tuple[Width, ...]:
    """The widths of a level."""
    return TOYS if scale.smoke else WIDTHS
