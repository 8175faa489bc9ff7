"""Proof that a patched model is alive: every adapted projection runs, every adapter gets a gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mora.adapters.record import adapters_of, unwrap
from mora.towers.tower import fitting


def verify(model: nn.Module) -> nn.Module:
    """Run one small forward and backward pass and return `model` if every adapter took part in it.

    Every adapted tower sees random inputs of batch 2, in the model's own dtype and on its device. Gradients, the random
    state and the training mode are left as they were.

    Raises:
        ValueError: `model` is not patched, or a tower of your own has no `encode` or no `example`.
        RuntimeError: an adapted projection never ran, or an adapter got no gradient, or one that is not finite; the
            message names them.
    """
    adapters, inner = adapters_of(model), unwrap(model)
    ran: set[str] = set()
    hooks = [
        projection.stand.register_forward_hook(lambda *_, name=name: ran.add(name))
        for name, projection in adapters.projections()
    ]
    named = dict(adapters.named_tensors())
    devices = {p.device for p in named.values() if p.device.type == "cuda"}
    frozen = [name for name, parameter in named.items() if not parameter.requires_grad]
    if frozen:
        raise RuntimeError(f"verify: adapters that do not require grad: {', '.join(frozen)}")
    try:
        with torch.random.fork_rng(devices=[device.index or 0 for device in devices]), torch.enable_grad():
            gradients = gradients_of(inner, list(named.values()))
    finally:
        for hook in hooks:
            hook.remove()
    dead = [name for name, _ in adapters.projections() if name not in ran]
    if dead:
        raise RuntimeError(f"verify: adapted projections that never ran: {', '.join(dead)}")
    silent = [name for name, gradient in zip(named, gradients, strict=True) if gradient is None]
    if silent:
        raise RuntimeError(
            f"verify: adapters without a gradient: {', '.join(silent)}; something runs without gradients, for example "
            "reentrant checkpointing of a block whose input needs none: pass use_reentrant=False"
        )
    broken = [name for name, g in zip(named, gradients, strict=True) if g is not None and not g.isfinite().all()]
    if broken:
        raise RuntimeError(f"verify: adapters whose gradient is NaN or infinite: {', '.join(broken)}")
    return model


def gradients_of(model: nn.Module, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """The gradient of each parameter of a patched CLIP, None where there is none; `.grad` is left as it was."""
    loss = embedding_energy(model)
    if not loss.requires_grad:
        return [None] * len(parameters)
    gradients: list[Tensor | None]
    try:
        gradients = list(torch.autograd.grad(loss, parameters, allow_unused=True))
    except RuntimeError as error:
        if "checkpoint" not in str(error):
            raise
        gradients = [None] * len(parameters)
    if all(gradient is not None for gradient in gradients):
        return gradients
    if any(has_own_step(parameter) for parameter in model.parameters()):
        raise RuntimeError(
            "verify: adapters without a gradient by torch.autograd.grad; .backward(), which reentrant checkpointing "
            "asks for, would run the hooks that act on parameters once their gradient is there: verify without them"
        )
    return accumulated(model, parameters)


def has_own_step(parameter: nn.Parameter) -> bool:
    """Whether something happens to a parameter as soon as its gradient is there, such as an optimizer's step."""
    return bool(getattr(parameter, "_post_accumulate_grad_hooks", None))


def accumulated(model: nn.Module, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """The same by `.backward()`, the only way through reentrant checkpointing."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.grad = None
        embedding_energy(model).backward()
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def embedding_energy(model: nn.Module) -> Tensor:
    """The sum over adapted towers of the mean square of their embeddings of random inputs."""
    adapters = adapters_of(model)
    weight = next(adapters.projections())[1].outline
    for tower in adapters.adapted.values():
        if why := tower.untried(model):
            raise ValueError(f"verify: {why}")
    inputs = [(tower, fitting(tower.random(model, batch=2), weight)) for tower in adapters.adapted.values()]
    energies = [tower.encode(model, given).float().square().mean() for tower, given in inputs]
    return torch.stack(energies).sum()
