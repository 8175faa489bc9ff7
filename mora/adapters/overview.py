"""What is adapted, where, by which backend: `print(mora.summary(model))`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mora.adapters.record import DEFAULT, Adapters, adapters_of, host_of, unwrap
from mora.config import MoraConfig
from mora.lora.linear import LoraLinear
from mora.methods.linear import MoraLinear
from mora.projection.adapted import Adapted
from mora.towers.custom import CustomTower
from mora.towers.find import recipe_of


@dataclass(frozen=True)
class Projection:
    """One row of the summary: a projection, its size, ranks, trainable parameters, and what computes it."""

    name: str
    path: str
    width: int  # of its input
    out_width: int
    common_rank: int
    specific_rank: int
    parameters: int
    backend: str
    reason: str

    @property
    def ranks(self) -> str:
        """r_c + r_s; r of LoRA and DoRA."""
        return f"{self.common_rank}+{self.specific_rank}" if self.common_rank else f"{self.specific_rank}"


@dataclass(frozen=True)
class Summary:
    """What `mora.summary` found; `str()` is a table.

    `gram` is what G is of several other towers' Gram matrices, "mean" or "sum"; None where no block has several.
    `name` is that of the active adapter, whose rows these are; `others` those of adapters beside it.
    `adapter_parameters` counts the active one, `other_parameters` the others; `trainable_parameters` everything that
    requires grad in the model; `total_parameters` everything, adapters included; `base_parameters` the pretrained model
    alone.
    """

    library: str
    config: MoraConfig
    projections: tuple[Projection, ...]
    common_parameters: int
    adapter_parameters: int
    trainable_parameters: int
    total_parameters: int
    gram: str | None = None
    name: str = DEFAULT
    others: tuple[str, ...] = ()
    other_parameters: int = 0

    @property
    def method(self) -> str:
        """ "MoRA", "LoRA", or several of them, "MoRA and LoRA"."""
        names = {"mora": "MoRA", "lora": "LoRA", "dora": "DoRA"}
        return " and ".join(name for method, name in names.items() if method in self.config.modes())

    @property
    def base_parameters(self) -> int:
        """Parameters of the model without its adapters."""
        return self.total_parameters - self.adapter_parameters - self.other_parameters

    def __str__(self) -> str:
        heads = ("projection", "module", "weight", "rank", "parameters", "backend")
        rows = [
            (p.name, p.path, f"{p.out_width} x {p.width}", p.ranks, f"{p.parameters:,}", p.backend)
            for p in self.projections
        ]
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        share = 100 * self.trainable_parameters / self.base_parameters
        coupled = any(p.common_rank for p in self.projections)
        reasons = sorted({f"{p.backend}: {p.reason}" for p in self.projections})
        return "\n".join(
            [
                f"{self.method} on {self.library}: {self.config}",
                *(line.rstrip() for line in lines),
                *([f"common factors, shared by towers: {self.common_parameters:,} parameters"] * coupled),
                f"adapters: {self.adapter_parameters:,}; trainable: {self.trainable_parameters:,}; pretrained model: "
                f"{self.base_parameters:,}; trainable share: {share:.4f} %",
                *([f"G: the {self.gram} of the Gram matrices of the other towers"] if self.gram else []),
                *([f"active: {self.name}; beside it: {', '.join(self.others)}"] if self.others else []),
                *(f"backend {reason}" for reason in reasons),
            ]
        )


def summary(model: nn.Module) -> Summary:
    """Return what is adapted in a patched model; raises ValueError when it is not patched."""
    adapters, inner = adapters_of(model), unwrap(model)
    others = [one for one in host_of(model).every().values() if one is not adapters]
    paths = {id(module): path for path, module in inner.named_modules()}
    rows = []
    for name, projection in adapters.projections():
        backend, reason = projection.path()
        common, specific = ranks_of(projection)
        rows.append(
            Projection(
                name=name,
                path=paths[id(projection.stand)],
                width=projection.in_features,
                out_width=projection.out_features,
                common_rank=common,
                specific_rank=specific,
                parameters=sum(p.numel() for n, p in projection.named_parameters() if n not in ("weight", "bias")),
                backend=backend,
                reason=reason,
            )
        )
    coupled = any(isinstance(projection, MoraLinear) and projection.gram for _, projection in adapters.projections())
    return Summary(
        library=library_of(inner, adapters),
        config=adapters.config,
        projections=tuple(rows),
        common_parameters=sum(p.numel() for p in adapters.common.parameters()),
        adapter_parameters=sum(p.numel() for _, p in adapters.named_tensors()),
        trainable_parameters=sum(p.numel() for p in inner.parameters() if p.requires_grad),
        total_parameters=sum(p.numel() for p in inner.parameters()),
        gram=adapters.config.gram_of(adapters.pairs) if coupled else None,
        name=adapters.name,
        others=tuple(one.name for one in others),
        other_parameters=sum(p.numel() for one in others for _, p in one.named_tensors()),
    )


def ranks_of(projection: Adapted) -> tuple[int, int]:
    """(r_c, r_s) of a projection; (0, r) of LoRA and DoRA."""
    if isinstance(projection, LoraLinear):
        return 0, projection.rank
    assert isinstance(projection, MoraLinear)
    return projection.common.rank, 0 if projection.specific_a is None else projection.specific_a.shape[1]


def library_of(model: nn.Module, adapters: Adapters) -> str:
    """The library that made a model, or its class where somebody described its towers."""
    own = any(isinstance(tower, CustomTower) for tower in adapters.towers.values())
    return type(model).__name__ if own else recipe_of(model).name
