"""A tiny CLIP with a third tower, of five vectors each, rows of every subset, and the backbone that reads them."""

import torch
from torch import nn

import mora
from mora.data.dataset import Dataset, Row
from mora.data.modality import Modality
from mora.data.presence import Presence
from mora.towers import towers_of
from mora.training import Backbone, Trainer
from tests.mora.models import IMAGE, open_clip_model
from tests.training import fakes

MODALITIES = ("image", "text", "sketch")
WIDTH = 8


class Sketches(Modality):
    """Five vectors, in a file of their numbers."""

    name, plural = "sketch", "sketches"

    def decode(self, data, where):
        return torch.tensor([float(word) for word in data.decode().split()]).reshape(5, WIDTH)

    def probes(self):
        return [torch.ones(5, WIDTH), torch.arange(5.0 * WIDTH).reshape(5, WIDTH)]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        weights = (self.q_proj(x) @ self.k_proj(x).mT / WIDTH**0.5).softmax(dim=-1)
        return x + self.out_proj(weights @ self.v_proj(x))


class Sketch(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x.mean(dim=1)


def model(seed=0):
    """An open_clip model with a tower more; it says itself what its towers are."""
    clip = open_clip_model()
    torch.manual_seed(seed)
    clip.sketch = Sketch()
    tower = mora.Tower("sketch.blocks", encode="sketch", missing=torch.zeros(5, WIDTH), width=WIDTH)
    clip.mora_towers = {**towers_of(clip), "sketch": tower}
    return clip


def scaled(value):
    return value / 2


def backbone(seed=0):
    others = {"sketch": scaled}
    return Backbone.of(model(seed), fakes.preprocess, fakes.tokenizer, "three", others=others)


class Rows(Dataset):
    """Rows whose every modality tells the class; row i has the subset i mod 7."""

    name, classes, multi_label, metric = "threes", fakes.CLASSES, False, "accuracy"
    modalities = MODALITIES

    def __init__(self, count, split="train", seed=0, whole=False):
        generator = torch.Generator().manual_seed(seed)
        self.split, self.fingerprint = split, f"{split}-{count}-{whole}"
        self.all_labels = torch.arange(count) % 3
        self.images = torch.randn(count, 3, IMAGE, IMAGE, generator=generator)
        self.images[torch.arange(count), self.all_labels] += 1.0
        self.sketches = torch.randn(count, 5, WIDTH, generator=generator)
        self.sketches[torch.arange(count), :, self.all_labels] += 2.0
        codes = torch.arange(count) // 3 % 7 + 1
        self.mask = (codes[:, None] >> torch.arange(3) & 1).bool() | whole

    def __len__(self):
        return len(self.all_labels)

    def labels(self):
        return self.all_labels

    def present(self):
        return Presence(self.modalities, self.mask)

    def __getitem__(self, index):
        label = self.all_labels[index]
        values = self.images[index], f"{self.split} {index} {int(label)}", self.sketches[index]
        there = self.mask[index].tolist()
        given = {m: value if has else None for m, value, has in zip(MODALITIES, values, there, strict=True)}
        return Row(given, label, f"{self.split} row {index}")


def splits(train=42, whole=False):
    return {
        "train": Rows(train, "train", 0, whole),
        "validation": Rows(21, "validation", 1, whole),
        "test": Rows(21, "test", 2, whole),
    }


def trainer(out, datasets=None, console=None, **fields):
    given = {"missing": "none", **fields}
    config = fakes.config(out, **given)
    return Trainer(config, backbone(), datasets or splits(), console or fakes.Silent())
