"""Which towers a model has; nothing outside this folder asks what library it is from."""

from __future__ import annotations

from torch import nn

from mora.towers.cutting import CutTower
from mora.towers.recipes import RECIPES, Own, Recipe
from mora.towers.tower import Tower


def towers_of(model: nn.Module) -> dict[str, Tower]:
    """The towers of `model` by modality, in the order in which embeddings are put side by side.

    Raises ValueError that lists what was looked for and what was found.
    """
    return recipe_of(model).towers(model)


def recipe_of(model: nn.Module) -> Recipe:
    """The recipe that a model was made by; raises ValueError as `towers_of`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected an open_clip or Hugging Face CLIP")
    for recipe in RECIPES:
        if recipe.matches(model):
            if reasons := recipe.unsupported(model):
                raise ValueError(f"model: got a {type(model).__name__}, which cannot be adapted: {'; '.join(reasons)}")
            return recipe
    if hasattr(model, "_orig_mod") or type(model).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel"):
        raise ValueError(f"model: got a {type(model).__name__}, expected the CLIP itself: patch before wrapping")
    if inside := models_inside(model):
        raise ValueError(f"model: got a {type(model).__name__}, expected the CLIP itself: pass {' or '.join(inside)}")
    ordered = sorted(RECIPES, key=lambda one: isinstance(one, Own))  # what few models have, last
    looked = "; ".join(f"{recipe.name}: {recipe.looked_for}" for recipe in ordered)
    children = ", ".join(name for name, _ in model.named_children()) or "no child modules"
    raise ValueError(f"model: got a {type(model).__name__} with {children}, looked for {looked}")


def cut_towers_of(model: nn.Module) -> dict[str, CutTower]:
    """As `towers_of`; ValueError names the towers that cannot be cut in two."""
    towers = towers_of(model)
    found = {modality: tower for modality, tower in towers.items() if isinstance(tower, CutTower)}
    if whole := [f"{tower.modality} ({tower.kind})" for tower in towers.values() if tower.modality not in found]:
        raise ValueError(f"model: got towers that run whole: {', '.join(whole)}; expected some that can be cut")
    return found


def towers_of_itself(model: nn.Module) -> dict[str, Tower]:
    """As `towers_of`; ValueError names the model's place when `model` is something around it that forwards to it."""
    towers = towers_of(model)
    if type(model).__getattr__ is not nn.Module.__getattr__ and (inside := models_inside(model)):
        raise ValueError(
            f"model: got a {type(model).__name__} around the CLIP, expected the CLIP itself: patch "
            f"{' or '.join(inside)}, then wrap it"
        )
    return towers


def models_inside(model: nn.Module) -> list[str]:
    """ "model.clip" of every model with towers that `model` holds; wrappers that only forward, and parts, left out."""
    found: list[str] = []
    for name, module in model.named_modules():
        within = any(f"model.{name}".startswith(f"{outer}.") for outer in found)
        if name and not within and type(module).__getattr__ is nn.Module.__getattr__:
            found += [f"model.{name}"] * any(recipe.matches(module) for recipe in RECIPES)
    return found
