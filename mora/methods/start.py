"""The start of an adapter: factors drawn, magnitudes the column norms of the weight it stands on, however that came."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mora.bases.sharded import is_sharded
from mora.projection.loaded import follow_weight

ROUNDING = 1e-2  # relative, of column norms: rounding to half precision and back stays below it


class Projection(Protocol):
    """What an adapter's start asks of the projection it stands on; `mora.MoraLinear` has it."""

    weight: Tensor
    specific_a: nn.Parameter | None
    specific_b: nn.Parameter | None
    specific_magnitude: nn.Parameter | None
    common_magnitude: nn.Parameter
    start: Tensor | None
    identity: bool
    modality: str
    backend: str

    @property
    def outline(self) -> Tensor:
        """Shape, dtype and device of the weight."""

    @property
    def common(self) -> Any:
        """The factors shared by a pair of blocks."""


def factor_dtype(weight: Tensor) -> torch.dtype:
    """float64 for a float64 weight, else float32: factors of a half-precision model are trained in float32."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def column_norms(weight: Tensor) -> Tensor:
    """|W[:, j]| [in] of a weight, in the dtype of its factors."""
    return torch.linalg.vector_norm(weight.detach().to(factor_dtype(weight)), dim=0)


@torch.no_grad()
def draw(factor: Tensor | None, rank: int) -> None:
    """Draw a factor N(0, 1 / rank), in place."""
    if factor is not None:
        factor.normal_(std=rank**-0.5)  # not by nn.init, which other libraries take away for a while


@torch.no_grad()
def settle(projection: Projection) -> None:
    """Set both magnitudes as `patch` does, from the weight that is there now."""
    norm = column_norms(projection.weight)
    projection.common_magnitude.copy_(torch.zeros_like(norm) if projection.identity else norm)
    if projection.specific_magnitude is not None:
        projection.specific_magnitude.copy_(norm)
    projection.start = norm.cpu()


@torch.no_grad()
def fill(projection: Projection) -> None:
    """Give a projection whose memory is new its start: A drawn, B zero; the magnitudes wait for the weight."""
    if projection.specific_a is not None and projection.specific_b is not None:
        draw(projection.specific_a, projection.specific_a.shape[1])
        projection.specific_b.zero_()
    projection.start = None


def materialise(projection: Projection) -> None:
    """Give parameters on the meta device memory beside the weight, and their start."""
    for name in ("specific_a", "specific_b", "common_magnitude", "specific_magnitude"):
        parameter = getattr(projection, name)
        if parameter is not None:
            empty = torch.empty_like(parameter, device=projection.outline.device)
            setattr(projection, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    fill(projection)


@torch.no_grad()
def untouched(projection: Projection) -> bool:
    """Whether nothing was trained or loaded into a projection since its start, whatever dtypes it passed."""
    if projection.start is None or projection.common_magnitude.is_meta:
        return False
    a, b = projection.common_magnitude.cpu(), projection.start
    expected = torch.zeros_like(b) if projection.identity else b
    if projection.specific_b is None or projection.specific_magnitude is None:
        return torch.equal(a, expected.to(a.dtype))
    other = projection.specific_magnitude.cpu().to(b.dtype)
    same = torch.allclose(a.to(b.dtype), expected, rtol=ROUNDING, atol=0, equal_nan=True)
    same &= torch.allclose(other, b, rtol=ROUNDING, atol=0, equal_nan=True)
    return same and not bool(projection.specific_b.any())


@torch.no_grad()
def follow(projection: Projection, loaded: bool) -> None:
    """After weights were loaded: an untouched projection starts anew from them, a trained one says that it does not.

    `loaded` says that the adapter's own tensors came with the weights, and so belong to them.
    """
    if projection.outline.is_meta:
        return
    if projection.common_magnitude.is_meta:
        materialise(projection)
    follow_weight(projection, loaded, column_norms, untouched)


def check_call(projection: Projection) -> None:
    """Raise RuntimeError where a call cannot be right, with the way out; give memory without a start its magnitudes."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise RuntimeError(
            "torch.jit.trace and TorchScript ONNX export would record W_eff as a constant; expected a merged model "
            "(mora.merge(copy.deepcopy(model))), torch.export, or torch.onnx.export(dynamo=True)"
        )
    weight, magnitude = projection.outline, projection.common_magnitude
    common = projection.common.of(projection.modality)
    if is_sharded(common) and not is_sharded(magnitude):
        raise RuntimeError(
            "mora: common factors are sharded (DTensor) while a block that reads them runs: towers share them, so "
            "apply fully_shard to blocks and then to the root, not to model.mora"
        )
    if any(is_sharded(tensor) for tensor in (weight, magnitude, common)):
        raise RuntimeError(
            "mora: an adapted projection is sharded (DTensor), and W_eff needs whole weights and factors: call the "
            "model through its root, to which fully_shard was applied last, or register_fsdp_forward_method there"
        )
    if not magnitude.numel() and hasattr(magnitude, "ds_id"):
        raise RuntimeError(
            "mora: an adapter is partitioned by DeepSpeed ZeRO-3, and W_eff needs whole weights and factors: use DDP, "
            "FSDP2, or ZeRO stage 1 or 2"
        )
    if len({tensor.is_meta for tensor in (weight, magnitude, common)}) > 1:
        raise RuntimeError(
            "mora: an adapter and its frozen weight are not both in memory (one is on the meta device); expected both: "
            "load weights with load_state_dict on the whole model; with accelerate, offload first and patch then"
        )
    if projection.backend != "reference" and torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "torch.func transforms (grad, vmap, jvp) cannot pass the fused operations; expected "
            "mora.patch(model, backend='reference') for them, or torch.autograd"
        )
    if projection.start is None and not weight.is_meta:
        settle(projection)
