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
    if inside := clips_inside(model):
        raise ValueError(f"model: got a {type(model).__name__}, expected the CLIP itself: pass {' or '.join(inside)}")
    looked = "; ".join(f"{family.name}: {family.looked_for}" for family in FAMILIES)
    children = ", ".join(name for name, _ in model.named_children()) or "no child modules"
    raise ValueError(f"model: got a {type(model).__name__} with {children}, looked for {looked}")


def clips_inside(model: nn.Module) -> list[str]:
    """ "model.clip" of every CLIP that `model` holds, those of wrappers that only forward to one left out."""
    return [
        f"model.{name}"
        for name, module in model.named_modules()
        if name
        and type(module).__getattr__ is nn.Module.__getattr__
        and any(family.matches(module) for family in FAMILIES)
    ]
