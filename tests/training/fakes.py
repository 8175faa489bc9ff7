"""A data set that learns in seconds, and the backbone that reads it: images are tensors, texts name their row."""

import torch

import mora
from mora.data.dataset import Dataset, Sample
from mora.training import Backbone, TrainConfig, Trainer
from tests.mora.models import CONTEXT, IMAGE, VOCABULARY, open_clip_model

CLASSES = ("red", "green", "blue")


class Rows(Dataset):
    """Rows held in memory; every third image and every fifth text of odd rows is naturally missing if asked."""

    name, classes, multi_label, metric = "rows", CLASSES, False, "accuracy"

    def __init__(self, images, labels, split="train", natural=False):
        self.images, self.all_labels, self.split = images, labels, split
        self.natural, self.fingerprint = natural, f"{split}-{len(labels)}"

    def __len__(self):
        return len(self.all_labels)

    def available(self):
        lacks = torch.zeros(len(self), dtype=torch.int8)
        if self.natural:
            lacks[::3], lacks[1::5] = 2, 1
        return lacks

    def labels(self):
        return self.all_labels

    def __getitem__(self, index):
        lacks = int(self.available()[index])
        image = None if lacks == 2 else self.images[index]
        text = None if lacks == 1 else f"{self.split} {index} {int(self.all_labels[index])}"
        return Sample(image, text, self.all_labels[index], f"{self.split} row {index}")


def rows(count, split="train", seed=0, natural=False):
    """Noisy colours, three classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 3, IMAGE, IMAGE, generator=generator)
    images[torch.arange(count), labels] += 1.0
    return Rows(images, labels, split, natural)


def splits(train=40, natural=False):
    return {
        "train": rows(train, "train", 0, natural),
        "validation": rows(15, "validation", 1, natural),
        "test": rows(15, "test", 2, natural),
    }


def preprocess(image):
    return image if isinstance(image, torch.Tensor) else torch.ones(3, IMAGE, IMAGE)


def tokenizer(texts):
    """[begin, letters, end, 0 ...]; the last word of a row's text is its label."""
    tokens = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
    for row, text in enumerate(texts):
        content = [1 + ord(letter) % (VOCABULARY - 4) for letter in text][: CONTEXT - 2]
        line = [VOCABULARY - 2, *content, VOCABULARY - 1]
        tokens[row, : len(line)] = torch.tensor(line)
    return tokens


def backbone(model=None):
    return Backbone.of(open_clip_model() if model is None else model, preprocess, tokenizer, "fake")


class Silent:
    """A console that keeps what it is told."""

    is_terminal = False

    def __init__(self):
        self.lines = []

    def print(self, text, **_):
        self.lines.append(text)


def config(out, **fields):
    given = dict(epochs=2, batch=8, lr=1e-2, missing="both:0.5", device="cpu", last_layers=2, log_every=1)
    return TrainConfig.make(data="rows", out=str(out), **{**given, **fields})


def trainer(out, datasets=None, model=None, console=None, **fields):
    return Trainer(config(out, **fields), backbone(model), datasets or splits(), console or Silent())


def trained_tensors(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.engine.trained.items()}


def adapters(model):
    return dict(mora.adapter_parameters(model))
