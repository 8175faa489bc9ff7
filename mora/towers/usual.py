"""Where the projections of a block are that nobody described: by the names that blocks of many libraries use."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from mora.fields.names import ATTENTION, MLP, TARGETS, target_of
from mora.projection.site import Site
from mora.system.messages import listed, shown
from mora.towers.fused import FusedLinear
from mora.towers.layouts import Fused, Layout, Packed, Separate

FORMS = ("{}_proj", "to_{}", "w{}", "{}_lin", "{}_linear", "{}")
TRIPLES = (*([form.format(target) for target in "qkv"] for form in FORMS), ["query", "key", "value"])
# Below what holds q, k and v; the last stands beside it (BERT).
OUTS = (
    "out_proj", "o_proj", "to_out", "to_out.0", "wo", "out_lin", "out_linear", "out", "o", "proj", "c_proj", "dense",
)  # fmt: skip
BESIDE = "output.dense"
# fc1 and fc2 below what holds them; an `nn.Sequential` of two linears is one as well.
MLPS = (
    ("fc1", "fc2"), ("lin1", "lin2"), ("linear1", "linear2"), ("w1", "w2"), ("wi", "wo"), ("up_proj", "down_proj"),
    ("weights_in", "weights_out"), ("intermediate.dense", "output.dense"),
)  # fmt: skip
FUSED = ("qkv", "qkv_proj", "to_qkv", "Wqkv", "c_attn")  # one linear [3 d, d] for q, k and v, in this order


def usual_layout(block: nn.Module, where: str) -> Layout:
    """How a block holds its projections, by their names; `where` begins the message.

    Raises ValueError that lists the block's linears when it has no known attention, or several.
    """
    found = list(candidates(block))
    if len(found) == 1:
        return found[0]
    sought = "looked for in_proj_weight, or q, k, v as q_proj, query, to_q, wq, q_lin, q, or in one linear qkv"
    say = "say which: projections={'q': 'PATH BELOW THE BLOCK', ...}"
    if found:
        places = ", ".join(repr(layout.attention) for layout in found)
        raise ValueError(f"{where} is a {type(block).__name__} with several attentions, {places}: {say}")
    raise ValueError(f"{where} is a {type(block).__name__} with {content(block)}: {sought}; {say}")


def usual_mlp(block: nn.Module, where: str) -> dict[str, str]:
    """{"fc1": path below the block, "fc2": path} of a block's MLP, by the names that are usual; `where` as above.

    Raises ValueError that lists the block's linears when it has no such MLP, or several.
    """
    found = list(perceptrons(block))
    if len(found) == 1:
        return dict(zip(MLP, found[0], strict=True))
    where = f"{where} is a {type(block).__name__} with"
    if found:
        raise ValueError(f"{where} several MLPs, {listed(' and '.join(pair) for pair in found)}, expected one")
    raise ValueError(
        f"{where} {content(block)}: looked for an MLP of two linears, fc1 and fc2, c_fc and c_proj, lin1 and lin2; "
        "expected targets of its attention alone, or towers={'image': mora.Tower(..., projections={'fc1': 'PATH BELOW "
        "THE BLOCK', ...})}"
    )


def content(block: nn.Module) -> str:
    """The linears of a block with their sizes; where it has none, its children."""
    linears = [f"{name} {m.out_features} x {m.in_features}" for name, m in block.named_modules() if is_linear(m)]
    return listed(linears) if linears else listed(name for name, _ in block.named_children()) or "no child modules"


def given_layout(block: nn.Module, projections: object, where: str) -> tuple[Layout, dict[str, str]]:
    """What somebody described: {"q": "attn.to_q", ...}, or the path of an attention with packed q, k, v.

    Returns the layout of the attention, and the paths of the MLP's linears beside it. Where no attention is described
    the layout is that of the MLP.

    Raises ValueError for an unknown target, and for a path that leads nowhere in `block`.
    """
    if isinstance(projections, str):
        attention = at(block, projections)
        if attention is None or "in_proj_weight" not in attention._parameters:
            raise ValueError(f"{where}: projections is {shown(projections)}, expected an attention with in_proj_weight")
        return Packed(projections), {}
    if not isinstance(projections, dict) or not projections:
        raise ValueError(f"{where}: projections is {shown(projections)}, expected {{'q': 'attn.to_q', ...}}")
    names = {}
    for given, path in projections.items():
        target = target_of(given) if isinstance(given, str) else None
        if target is None or target in names:
            raise ValueError(f"{where}: projections has {shown(given)}, expected each of {', '.join(TARGETS)} once")
        if not isinstance(path, str) or at(block, path) is None:
            linears = listed(name for name, module in block.named_modules() if is_linear(module)) or "none"
            raise ValueError(f"{where}: projections[{target!r}] is {shown(path)}, the block's linears are {linears}")
        names[target] = path
    attends = {target: names[target] for target in ATTENTION if target in names}
    mlp = {target: names[target] for target in MLP if target in names}
    if not attends:
        return Separate(mlp), {}
    fused = len({attends.get(target) for target in "qkv"}) == 1 and "q" in attends
    return Fused(attends) if fused else Separate(attends), mlp


def candidates(block: nn.Module) -> Iterator[Layout]:
    """The layout of every attention below a block."""
    for path, module in block.named_modules():
        if path and "in_proj_weight" in module._parameters:
            yield Packed(path)
            continue
        triple = next((each for each in TRIPLES if all(is_linear(getattr(module, name, None)) for name in each)), None)
        fused = next((name for name in FUSED if is_fused(getattr(module, name, None))), "")
        if triple is None and not fused:
            continue
        below = f"{path}." if path else ""
        names = {target: below + name for target, name in zip("qkv", triple or [fused] * 3, strict=True)}
        beside = ".".join([*path.split(".")[:-1], BESIDE])
        outs = [*(below + name for name in OUTS), *([beside] if path else [])]
        out = next((name for name in outs if is_linear(at(block, name))), None)
        names |= {} if out is None else {"out": out}
        yield Separate(names) if triple else Fused(names)


def perceptrons(block: nn.Module) -> Iterator[tuple[str, str]]:
    """The paths of the first and the last linear of every MLP below a block."""
    for path, module in block.named_modules():
        pairs = [*MLPS]
        if isinstance(module, nn.Sequential):
            linears = [name for name, child in module.named_children() if sizes(child)]
            pairs = [(linears[0], linears[1])] if len(linears) == 2 else []
        for first, last in pairs:
            up, down = sizes(at(module, first)), sizes(at(module, last))
            if up and down and up[1] == down[0]:
                below = f"{path}." if path else ""
                yield below + first, below + last


def sizes(module: object) -> tuple[int, int] | None:
    """(out, in) of a linear of any library's; whether it can be adapted is its slot's to say."""
    found = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return found if all(isinstance(size, int) for size in found) else None  # type: ignore[return-value]


def is_fused(module: object) -> bool:
    """Whether something is an `nn.Linear` [3 d, d], or stands for one."""
    return isinstance(module, (nn.Linear, FusedLinear)) and module.out_features == 3 * module.in_features


def is_linear(module: object) -> bool:
    """Whether something is an `nn.Linear`, or stands for one."""
    return isinstance(module, (nn.Linear, Site))


def at(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, or None."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
