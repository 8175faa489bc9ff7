"""One tower of a model, with what cannot change left out: embeddings of rows of which some are not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mora.adapters.prompts import prompts_of
from mora.adapters.record import host_of, is_patched, unwrap
from mora.savings.contents import contents
from mora.savings.fast_path import as_in_training
from mora.savings.options import Hidden, Savings, chosen, padded
from mora.savings.plan import Plan, plan_of
from mora.savings.state import Kept, flags_of, frozen_state, kept, precision, state_of, switches_of, version
from mora.savings.there import by_pattern, fitted, only_there
from mora.system.hooks import watched_itself
from mora.towers.cutting import CutTower, evaluating
from mora.towers.tower import Tower
from mora_kernels.kept import scope_of


class Runner:
    """Runs one tower of a model.

    Args:
        tower: one that cannot be cut runs whole.
        savings: what is left out.
        others: the other towers of the model, which have no part in it.
    """

    def __init__(self, tower: Tower, savings: Savings, others: Iterable[Tower] = ()) -> None:
        self.tower, self.savings, self.others = tower, savings, tuple(others)
        self.plans, self.rows = Kept(), Kept()

    @property
    def modality(self) -> str:
        """Of the tower."""
        return self.tower.modality

    @property
    def parts(self) -> CutTower:
        """The tower, where its plan says that it can be cut."""
        assert isinstance(self.tower, CutTower)
        return self.tower

    @property
    def trims(self) -> bool:
        """Whether rows come with the tokens of their inputs, which may end before the context does."""
        return isinstance(self.tower, CutTower) and self.tower.trims

    @property
    def cuts(self) -> bool:
        """Whether inputs run in two parts, prefix and suffix, where the tower can be cut: the same up to rounding."""
        return self.savings.pooled or self.savings.trimmed or self.savings.lean

    def clip(self, model: nn.Module) -> Any:
        """The CLIP inside wrappers that `mora.patch` is seen through."""
        return unwrap(model) if is_patched(model) else model

    def plan(self, model: nn.Module, substitute: Tensor, training: bool | None = None) -> Plan:
        """How this tower is run, in the model's mode or another; found out anew when something else is trained."""
        clip = self.clip(model)
        training = clip.training if training is None else training
        if hasattr(clip, "_orig_mod") or clip is not model:
            return Plan(whole=f"the CLIP is wrapped in a {type(model).__name__}")
        if not isinstance(self.tower, CutTower):
            return plan_of(clip, self.tower, substitute, training)
        state = (id(clip), id(getattr(clip, "mora", None)), substitute.device, substitute.dtype, flags_of(clip))
        make = lambda: plan_of(clip, self.tower, substitute[None], training)  # noqa: E731
        around = self.plans.get("around", state, lambda: self.parts.around(clip))
        if any(watched_itself(module) for module in around):
            return Plan(whole="somebody registered hooks on a module around its blocks")
        active = host_of(clip).here() if is_patched(clip) else ""  # what is trained differs between adapters
        return self.plans.get(f"{'training' if training else 'eval'} {active}", state, make)

    def embed(
        self,
        model: nn.Module,
        given: Tensor | Hidden | None,
        present: Tensor,
        substitute: Tensor,
        training: bool,
        alone: Tensor | None = None,
        patterns: Tensor | None = None,
    ) -> Tensor:
        """Embeddings [B, e]; rows where `present` is False are those of the substitute, or `alone`.

        Args:
            model: the CLIP.
            given: inputs [B, ...], rows past the frozen blocks, or None.
            present: bool [B].
            substitute: what stands for a missing input, one row of inputs.
            training: whether every row is to have dropout of its own.
            alone: [1, e], in the place of the substitute's embedding.
            patterns: int64 [B], what each row has, where the model has prompts.
        """
        run = partial(self.run, model, substitute=substitute)
        if alone is not None:
            return only_there(run, given, present, substitute, training, alone, patterns)
        if training or not self.savings.missing:
            return run(self.every_row(model, given, present, substitute), patterns=patterns)
        if given is not None and bool(present.all()):
            return run(given, patterns=patterns)
        if patterns is None:
            lone = self.embedded_substitute(model, substitute)
        else:
            lone = by_pattern(run, substitute, patterns, present)
        if given is None or not bool(present.any()):
            return lone.expand(len(present), -1)
        embedded = run(chosen(given, present), patterns=None if patterns is None else patterns[present])
        rows = lone.repeat(len(present) // len(lone), 1)
        return rows.index_copy(0, present.nonzero().flatten(), embedded)

    def embedded_substitute(self, model: nn.Module, substitute: Tensor) -> Tensor:
        """The substitute's embedding [1, e]: once per call, or per state of the model where values are kept."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.run(model, substitute[None], substitute)
        make = lambda: self.run_substitute(model, substitute)  # noqa: E731

        def state() -> tuple[Any, ...]:
            return state_of(model), precision(substitute.device), version(substitute), model.training

        name, scope = (id(self), "embedding", torch.is_inference_mode_enabled()), scope_of(model)
        if scope is not None and scope.lasting:  # its counters moved: the bytes did as well
            return kept(model, name, state, make)
        return kept(model, name, state, lambda: self.same_contents("embedding", model, substitute, make))

    def run_substitute(self, model: nn.Module, substitute: Tensor) -> Tensor:
        """The substitute's embedding [1, e], from where frozen blocks left it: after a step they are what they were."""
        if self.cuts and not (plan := self.plan(model, substitute)).whole and plan.frozen:
            return self.run(model, self.frozen_substitute(model, substitute), substitute)
        return self.run(model, substitute[None], substitute)

    def every_row(
        self, model: nn.Module, given: Tensor | Hidden | None, present: Tensor, substitute: Tensor
    ) -> Tensor | Hidden:
        """Every row, present or not, as it enters the tower, or its blocks that are trained."""
        absent = given is None or not bool(present.all())
        if not absent or (isinstance(given, Hidden) and given.filled):
            assert given is not None
            return given
        plan = None if torch.compiler.is_compiling() else self.plan(model, substitute)
        if isinstance(given, Hidden) or (plan and self.savings.missing and plan.frozen and not plan.whole):
            return self.with_shared_prefix(model, given, present, substitute)
        rows = substitute.expand(len(present), *substitute.shape)
        if given is not None:
            assert isinstance(given, Tensor)
            keep = present.view(-1, *[1] * (given.dim() - 1))
            rows = torch.where(keep, given, fitted(rows, given, self.tower.padding(self.clip(model)), self.modality))
        return rows

    def with_shared_prefix(
        self, model: nn.Module, given: Tensor | Hidden | None, present: Tensor, substitute: Tensor
    ) -> Hidden:
        """The same, the substitute past the frozen blocks being one row that stands in every place it is needed."""
        alone = self.frozen_substitute(model, substitute)
        if given is None or not bool(present.any()):
            rows = alone.rows.expand(len(present), *alone.rows.shape[1:])
            tokens = None if alone.tokens is None else alone.tokens.expand(len(present), -1)
            return Hidden(rows, tokens)
        if isinstance(given, Hidden):
            length = given.rows.shape[1]
            keep = present.view(-1, *[1] * (given.rows.dim() - 1))
            cut = alone.rows if given.tokens is None or given.rows.dim() == 2 else padded(alone.rows, length)
            rows = torch.where(keep, given.rows, cut.to(given.rows.dtype))
            tokens = given.tokens
            if tokens is not None and alone.tokens is not None:
                tokens = torch.where(present[:, None], tokens, padded(alone.tokens, tokens.shape[1]))
            return Hidden(rows, tokens)
        place, count = present.nonzero().flatten(), len(present)
        there = self.prefix(model, given[present], substitute, atleast=self.end_of(model, substitute))
        cut = alone.rows if there.tokens is None or there.rows.dim() == 2 else padded(alone.rows, there.rows.shape[1])
        rows = cut.to(there.rows.dtype).repeat(count, *[1] * (cut.dim() - 1)).index_copy(0, place, there.rows)
        tokens = None
        if there.tokens is not None and alone.tokens is not None:
            tokens = padded(alone.tokens, there.tokens.shape[1]).repeat(count, 1).index_copy(0, place, there.tokens)
        return Hidden(rows, tokens)

    def frozen_substitute(self, model: nn.Module, substitute: Tensor) -> Hidden:
        """The substitute past the frozen blocks, one row: once per call, or per state of them where that is kept."""

        def state() -> tuple[Any, ...]:
            return frozen_state(model), precision(substitute.device), version(substitute), switches_of(model)

        name = (id(self), "prefix", torch.is_inference_mode_enabled())
        make = lambda: self.prefix(model, substitute[None], substitute)  # noqa: E731
        return kept(model, name, state, lambda: self.same_contents("prefix", model, substitute, make))

    def same_contents(self, name: str, model: nn.Module, substitute: Tensor, make: Callable[[], Any]) -> Any:
        """What was made last time, where every byte it depends on is the same; else what is made now.

        On the CPU, and for no texts: a substitute of hundreds of rows takes longer than to read the weights once.
        """
        if self.trims or substitute.device.type != "cpu" or (plan := self.plan(model, substitute)).whole:
            return make()
        clip = self.clip(model)
        others = self.plans.get("others", (id(clip),), lambda: self.modules_of_others(clip))
        state = contents(clip, others, substitute, frozen=name == "prefix")
        if state is None:
            return make()
        state = (*state, switches_of(clip), precision(substitute.device), plan, self.savings)
        mode = "inference" if torch.is_inference_mode_enabled() else "plain"
        return self.rows.get(f"{name} {mode}", state, make)

    def forget(self) -> None:
        """Drop what was found out about the tower, and the rows that are kept of it."""
        self.plans.forget()
        self.rows.forget()

    def modules_of_others(self, clip: Any) -> list[nn.Module]:
        """The modules within the blocks of the other towers, of which this one reads nothing."""
        own = {part for block in self.parts.blocks(clip) for part in block.modules()}
        blocks = [block for tower in self.others if isinstance(tower, CutTower) for block in tower.blocks(clip)]
        return [part for block in blocks for part in block.modules() if part not in own]

    def end_of(self, model: Any, substitute: Tensor) -> int:
        """How many tokens of the substitute count; 0 where inputs are not cut."""
        if not self.plan(model, substitute).trimmed:
            return 0
        return int(self.parts.ends(model, substitute[None])) + 1

    def ends(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """The last token of each input that can reach its embedding, int64 [B]; only where inputs are cut."""
        return self.parts.ends(self.clip(model), tokens)

    def prefix(self, model: Any, inputs: Tensor, substitute: Tensor, atleast: int = 0) -> Hidden:
        """Rows past the frozen blocks, of at least `atleast` tokens."""
        plan = self.plan(model, substitute)
        tokens: Tensor | None = None
        if plan.whole:
            raise ValueError(f"{self.modality}: rows past the frozen blocks cannot be had: {plan.whole}")
        if self.trims:
            inputs = self.trim(model, inputs, plan, atleast)
            tokens = inputs
        with as_in_training():
            if plan.ends_pooled and self.savings.pooled:  # nothing is trained: the last block is frozen as well
                with torch.no_grad(), evaluating(model):
                    hidden = self.parts.prefix(model, inputs, plan.depth - 1)
                    return Hidden(self.parts.suffix(model, hidden, plan.depth - 1, tokens), tokens)
            return Hidden(self.parts.prefix(model, inputs, plan.first, plan.frozen), tokens)

    def trim(self, model: Any, tokens: Tensor, plan: Plan, atleast: int = 0) -> Tensor:
        """Inputs cut after the longest one's end, rounded up."""
        if not (self.savings.trimmed and plan.trimmed):
            return tokens
        multiple = self.savings.multiple
        length = max(int(self.parts.ends(model, tokens).max()) + 1, atleast)
        return tokens[:, : -(-length // multiple) * multiple]

    def run(self, model: Any, given: Tensor | Hidden, substitute: Tensor, patterns: Tensor | None = None) -> Tensor:
        """Embeddings [B, e] of rows that are all computed; with prompts, of complete ones where `patterns` is None."""
        clip = self.clip(model)
        prompts = prompts_of(clip)
        if prompts is None and isinstance(given, Tensor) and torch.compiler.is_compiling():
            return self.tower.encode(model, given)
        plan = self.plan(model, substitute)
        if isinstance(given, Tensor):
            if prompts is None and (plan.whole or not self.cuts):
                return self.tower.encode(model, given)
            given = self.prefix(model, given, substitute)
        elif plan.whole:
            raise ValueError(f"{self.modality}: got rows past the frozen blocks, expected inputs: {plan.whole}")
        else:
            given = self.ready(model, given, plan, substitute)
        rows, tokens = given.rows, given.tokens
        front = None
        if prompts is not None:
            patterns = prompts.complete(len(rows), rows.device) if patterns is None else patterns
            ends = self.parts.ends(clip, tokens) if plan.trimmed and tokens is not None else None
            front = prompts.front(self.modality, patterns, rows, ends)
        return self.parts.suffix(model, rows, plan.first, tokens, self.savings.pooled, self.savings.lean, front)

    def ready(self, model: Any, given: Hidden, plan: Plan, substitute: Tensor) -> Hidden:
        """Rows in the dtype they were computed in, inputs cut."""
        rows, tokens = given.rows, given.tokens
        if tokens is not None and rows.dim() == 3:
            tokens = self.trim(model, tokens, plan)
            rows = rows[:, : tokens.shape[1]]
        if rows.dtype in (torch.float16, torch.bfloat16):
            rows = rows.to(self.frozen_substitute(model, substitute).rows.dtype)
        return Hidden(rows, tokens)

    def check(self, given: Hidden) -> None:
        """ValueError unless rows that have tokens come with them."""
        rows, tokens = given.rows, given.tokens
        if self.trims and rows.dim() == 3 and (tokens is None or tokens.shape != rows.shape[:2]):
            got = None if tokens is None else tuple(tokens.shape)
            raise ValueError(
                f"{self.modality}: got tokens of shape {got}, expected {tuple(rows.shape[:2])}, those of the rows"
            )
