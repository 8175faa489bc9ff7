"""`mora train` as a benchmark: a trainer whose rows are kept already, where it keeps any, so that each epoch is one
after the first: batches read, steps, validation, and all that the trainer checks between them.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.case import Provider, Shape
from benchmarks.providers import lora
from benchmarks.providers.official import make_official
from benchmarks.providers.ours import within_keeping
from mora_kernels.testing import assert_parity

OFF, ON = "patched, savings off", "patched, savings on"
OFFICIAL, LORA = "official", "PEFT LoRA"
WITHOUT = {"savings": "none", "cache": "off"}
# What each trains, and what it leaves out of the computation.
FIELDS: dict[str, dict[str, Any]] = {
    OFFICIAL: WITHOUT,
    LORA: {**WITHOUT, "method": "lora"},
    OFF: WITHOUT,
    ON: {"cache": "memory"},
}
PRESET = "food101"


def backbone(model: str) -> Any:
    """The built-in CLIP (None: the trainer loads it), or one of open_clip of a published size with random weights."""
    if model == "tiny":
        return None
    import open_clip

    from mora.runs.backbone import Backbone

    torch.manual_seed(0)
    clip, size = models.clip(model, "open_clip", "cpu"), models.SIZES[model].image
    preprocess = open_clip.transform.image_transform(size, is_train=False)
    return Backbone.of(clip, preprocess, open_clip.get_tokenizer("ViT-B-16-quickgelu"), model)


class Trained:
    """One way to train on the built-in data, under Food-101's preset: one of `FIELDS`."""

    def __init__(self, name: str, shape: Shape, device: str) -> None:
        from mora.system.signals import Stop
        from mora.training import TrainConfig, Trainer
        from mora.training.folder import RunFolder

        self.name, self.place = name, tempfile.TemporaryDirectory()
        config = TrainConfig.make(
            PRESET, data="openmoji", out=Path(self.place.name) / "run", missing=f"both:{shape['missing']}",
            batch=shape["batch"], limit=shape["rows"], epochs=10_000, dropout=shape["dropout"], device=device,
            log_every=10_000, lr=1e-5, **FIELDS[name],
        )  # fmt: skip
        self.trainer = Trainer(config, backbone(shape["model"]), console=Quiet())
        if name == OFFICIAL:
            make_official(self.trainer.model.model)
        if name == LORA:
            lora.as_trained(self.trainer.model.model)
        self.trainer.place = RunFolder(self.trainer.folder, False, self.trainer.accelerator, self.trainer.log)
        self.trainer.place.__enter__()  # held as long as the process lives
        self.trainer.place.open(self.trainer.description, self.trainer.engine, self.trainer.course)
        self.trainer.stop = Stop()
        self.trainer.keep_rows()
        self.checked = min(4 if shape["model"] != "tiny" else 8, shape["rows"])

    def train(self) -> None:
        """Every training row once."""
        self.trainer.progress.done = 0
        self.trainer.train_epoch()

    def validate(self) -> None:
        """Every validation row once."""
        self.trainer.engine.evaluate("validation", self.trainer.stop.asked)

    def run(self) -> None:
        """An epoch with its validation."""
        self.train()
        self.validate()

    def logits(self) -> Tensor:
        """Logits of the first validation rows."""
        engine = self.trainer.engine
        batch = engine.to_device(next(engine.batches("validation", [list(range(self.checked))])))
        with torch.no_grad():
            return engine.forward(engine.model.eval(), batch)

    def formula(self) -> Tensor:
        """The same in float64 by the method's own formula; only for one that keeps no rows."""
        from mora.runs.methods import fold

        engine = self.trainer.engine
        batch = engine.to_device(next(engine.batches("validation", [list(range(self.checked))])))
        model = copy.deepcopy(engine.model).eval().double()
        if self.name == LORA:
            fold(model.model, "lora", self.trainer.config.mora)
        else:
            make_official(model.model)
        with torch.no_grad():
            return engine.forward(model, {**batch, "image": batch["image"].double()})

    def provider(self, oracle: Callable[[], Tensor], tolerance: dict[torch.dtype, float]) -> Provider:
        """The epoch, after its logits were compared."""

        def check() -> None:
            assert_parity("logits", self.logits(), oracle(), tolerance)

        owned = tuple(self.trainer.model.parameters())
        run = within_keeping(self.trainer.model, self.run)  # as `Trainer.fit` does
        return Provider(run, check, owned=lambda: owned, eager=False, capturable=False)


class Quiet:
    """A console that says nothing."""

    is_terminal = False

    def print(self, *_: object, **__: object) -> None:
        """Nothing."""
