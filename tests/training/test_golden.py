"""The authors' training curve through this trainer: the same rows, the same start, every loss."""

import json

import pytest
import torch

import mora
from mora.data.dataset import Dataset, Sample
from mora.training import Backbone, TrainConfig, Trainer
from tests.mora.models import golden_clip, open_clip_twin
from tests.mora.test_official import official_name
from tests.training.fakes import Silent


class Golden(Dataset):
    """The golden file's batches, 60 of them one after another."""

    name, multi_label, metric = "golden", False, "accuracy"

    def __init__(self, tensors, config, split):
        self.split, self.fingerprint = split, split
        self.classes = tuple(map(str, range(config["num_classes"])))
        self.pixels, self.targets = tensors["input.pixel_values"], tensors["input.labels"]
        self.count = config["steps"] * self.pixels.shape[1] if split == "train" else 8

    def __len__(self):
        return self.count

    def place(self, index):
        batch, row = divmod(index, self.pixels.shape[1])
        return batch % len(self.pixels), row

    def __getitem__(self, index):
        batch, row = self.place(index)
        return Sample(self.pixels[batch, row], f"{batch} {row}", self.targets[batch, row], str(index))

    def available(self):
        return torch.zeros(self.count, dtype=torch.int8)

    def labels(self):
        return torch.stack([self.targets[self.place(index)] for index in range(self.count)])


def start(trainer, tensors, first_layer):
    """Put the golden file's initial values into adapters and head."""
    initial = {k.removeprefix("initial."): v for k, v in tensors.items() if k.startswith("initial.")}
    with torch.no_grad():
        for ours, parameter in mora.adapter_parameters(trainer.model.model):
            if ours.startswith("common"):
                _, position, modality = ours.split(".")
                prefix = f"model.text_model.encoder.layers.{int(position) + first_layer}.self_attn.v_proj"
                value = initial[f"{prefix}.shared_params.shared_{'A' if modality == 'text' else 'B'}"]
            else:
                value = initial[official_name(ours)]
            parameter.copy_(value.view_as(parameter))
        trainer.model.head.weight.copy_(initial["cls_head.weight"])
        trainer.model.head.bias.copy_(initial["cls_head.bias"])


def curve(tmp_path, monkeypatch, family, **savings):
    model, golden, tensors = golden_clip("official_training_curve")
    if family == "open_clip":
        model = open_clip_twin(model)
    ids = tensors["input.input_ids"]

    def tokenizer(texts):
        return torch.stack([ids[tuple(map(int, text.split()))] if text else ids[0, 0] for text in texts])

    size = tensors["input.pixel_values"].shape[-1]
    backbone = Backbone.of(
        model,
        lambda image: image if isinstance(image, torch.Tensor) else torch.ones(3, size, size),
        tokenizer,
        "golden",
    )
    fields = {key: golden["optimizer"][key] for key in ("lr", "weight_decay", "eps", "betas")}
    fields |= {key: golden[key] for key in ("rank", "common_rank", "alpha", "targets", "first_layer")}
    config = TrainConfig.make(
        data="golden",
        out=tmp_path / "run",
        epochs=1,
        batch=8,
        dropout=0.0,
        device="cpu",
        log_every=1,
        **fields,
        **savings,
    )
    monkeypatch.setattr("mora.training.trainer.epoch_order", lambda rows, seed, epoch: torch.arange(rows))
    datasets = {split: Golden(tensors, golden, split) for split in ("train", "validation")}
    trainer = Trainer(config, backbone, datasets, Silent())
    start(trainer, tensors, golden["first_layer"])
    trainer.fit()
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = torch.tensor([event["loss"] for event in events if event["event"] == "step"], dtype=torch.float64)
    return losses, tensors["out.losses"]


NONE, ALL = dict(savings="none", cache="off"), dict(cache="memory")


@pytest.mark.parametrize(("family", "savings"), [("hugging_face", NONE), ("hugging_face", ALL), ("open_clip", ALL)])
def test_the_published_curve(tmp_path, monkeypatch, family, savings):
    losses, expected = curve(tmp_path, monkeypatch, family, **savings)
    assert len(losses) == 60
    assert (losses - expected).abs().max() <= 1e-5
