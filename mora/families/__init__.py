"""The CLIP families that can be adapted; nothing outside this folder asks which one a model is of."""

from __future__ import annotations

from torch import nn

from mora.families.family import Family
from mora.families.hugging_face import HuggingFace
from mora.families.open_clip import OpenClip

FAMILIES: tuple[Family, ...] = (HuggingFace(), OpenClip())


def family_of(model: nn.Module) -> Family:
    """Return the family of `model`; raises ValueError that lists what was looked for and what was found."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected an open_clip or Hugging Face CLIP")
    for family in FAMILIES:
        if family.matches(model):
            if reasons := family.unsupported(model):
                raise ValueError(f"model: got a {type(model).__name__}, which cannot be adapted: {'; '.join(reasons)}")
            return family
    if hasattr(model, "_orig_mod") or type(model).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel"):
        raise ValueError(f"model: got a {type(model).__name__}, expected the CLIP itself: patch before wrapping")
    inside = [
        f"{path} (a {type(module).__name__})"
        for path, module in model.named_modules()
        if path and any(family.matches(module) for family in FAMILIES)
    ]
    if inside:
        raise ValueError(
            f"model: got a {type(model).__name__} with a CLIP inside, expected the CLIP: pass its {inside[0]}"
        )
    looked = "; ".join(f"{family.name}: {family.looked_for}" for family in FAMILIES)
    children = ", ".join(name for name, _ in model.named_children()) or "no child modules"
    raise ValueError(f"model: got a {type(model).__name__} with {children}, looked for {looked}")
