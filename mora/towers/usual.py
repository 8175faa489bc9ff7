"""Where the projections of a block are that nobody described: by the names that blocks of many libraries use."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from mora.names import TARGETS, target_of
from mora.system.messages import listed, shown
from mora.towers.layouts import Layout, Packed, Separate

FORMS = ("{}_proj", "to_{}", "w{}", "{}_lin", "{}_linear", "{}")
TRIPLES = (*([form.format(target) for target in "qkv"] for form in FORMS), ["query", "key", "value"])
# Below what holds q, k and v; the last stands beside it (BERT).
OUTS = (
    "out_proj", "o_proj", "to_out", "to_out.0", "wo", "out_lin", "out_linear", "out", "o", "proj", "c_proj", "dense",
)  # fmt: skip
BESIDE = "output.dense"
FUSED = ("qkv", "qkv_proj", "to_qkv", "in_proj", "c_attn", "query_key_value", "Wqkv")


def usual_layout(block: nn.Module, where: str) -> Layout:
    """How a block holds its projections, by their names; `where` begins the message.

    Raises ValueError that lists the block's linears when it has no known attention, or several.
    """
    found = list(candidates(block))
    if len(found) == 1:
        return found[0]
    sought = "looked for in_proj_weight, or q, k, v as q_proj, query, to_q, wq, q_lin or q"
    say = "say which: projections={'q': 'PATH BELOW THE BLOCK', ...}"
    if found:
        places = ", ".join(repr(layout.attention) for layout in found)
        raise ValueError(f"{where} is a {type(block).__name__} with several attentions, {places}: {say}")
    linears = [f"{name} {m.out_features} x {m.in_features}" for name, m in block.named_modules() if is_linear(m)]
    has = listed(linears) if linears else listed(name for name, _ in block.named_children()) or "no child modules"
    fused = [name for name, _ in block.named_modules() if name.rpartition(".")[2] in FUSED]
    hint = f"; {fused[0]} holds q, k, v in one linear, which is not read here" if fused else ""
    raise ValueError(f"{where} is a {type(block).__name__} with {has}: {sought}{hint}; {say}")


def given_layout(block: nn.Module, projections: object, where: str) -> Layout:
    """The layout that somebody described: {"q": "attn.to_q", ...}, or the path of an attention with packed q, k, v.

    Raises ValueError for an unknown target, and for a path that leads nowhere in `block`.
    """
    if isinstance(projections, str):
        attention = at(block, projections)
        if attention is None or "in_proj_weight" not in attention._parameters:
            raise ValueError(f"{where}: projections is {shown(projections)}, expected an attention with in_proj_weight")
        return Packed(projections)
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
    return Separate({target: names[target] for target in TARGETS if target in names})


def candidates(block: nn.Module) -> Iterator[Layout]:
    """The layout of every attention below a block."""
    for path, module in block.named_modules():
        if path and "in_proj_weight" in module._parameters:
            yield Packed(path)
            continue
        for triple in TRIPLES:
            if all(is_linear(getattr(module, name, None)) for name in triple):
                below = f"{path}." if path else ""
                names = {target: below + name for target, name in zip("qkv", triple, strict=True)}
                beside = ".".join([*path.split(".")[:-1], BESIDE])
                outs = [*(below + name for name in OUTS), *([beside] if path else [])]
                out = next((name for name in outs if is_linear(at(block, name))), None)
                yield Separate(names if out is None else {**names, "out": out})
                break


def is_linear(module: object) -> bool:
    """Whether something is an `nn.Linear`."""
    return isinstance(module, nn.Linear)


def at(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, or None."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
