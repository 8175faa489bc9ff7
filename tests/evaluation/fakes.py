"""A data set in memory and a trained run on the built-in tiny CLIP, without training."""

import torch
from PIL import Image

from mora.classifier import MissingModalityClassifier
from mora.config import MoraConfig
from mora.data.dataset import Dataset, Sample, fingerprint
from mora.runs.backbone import load_backbone
from mora.runs.methods import adapt
from mora.runs.run import BEST, save_best, write_config
from mora.training.config import TrainConfig

WORDS = ("apple", "pear", "plum", "fig")
METRICS = {"accuracy": (4, False), "macro_f1": (4, True), "auroc": (2, False)}


class InMemory(Dataset):
    """N samples of coloured squares and words; `natural` says what each lacks, `groups` which image it shows."""

    def __init__(self, n=12, metric="accuracy", natural=None, groups=None, split="test"):
        count, self.multi_label = METRICS[metric]
        self.name, self.split, self.metric = "squares", split, metric
        self.classes = WORDS[:count]
        self.natural = torch.zeros(n, dtype=torch.int8) if natural is None else torch.tensor(natural, dtype=torch.int8)
        self.shown = None if groups is None else torch.tensor(groups)
        self.fingerprint = fingerprint([self.name, split, n])
        self.reads = []

    def __len__(self):
        return len(self.natural)

    @property
    def rows(self):
        return len(self) if self.shown is None else int(self.shown.max()) + 1

    def available(self):
        return self.natural

    def groups(self):
        return self.shown

    def labels(self):
        index = torch.arange(len(self)) if self.shown is None else self.shown
        if not self.multi_label:
            return index % len(self.classes)
        return torch.stack([(index + c) % 3 == 0 for c in range(len(self.classes))], dim=1).float()

    def __getitem__(self, index):
        row = index if self.shown is None else int(self.shown[index])
        self.reads.append(index)
        image = Image.new("RGB", (64, 64), (40 * row % 256, 90 * row % 256, 17 * row % 256))
        lacks = int(self.natural[index])
        return Sample(
            None if lacks == 2 else image,
            None if lacks == 1 else f"{WORDS[index % 4]} number {index}",
            self.labels()[index],
            f"row-{index}",
        )


def write_run(
    folder,
    method="mora",
    metric="accuracy",
    token_policy="official",
    seed=0,
    name="tiny",
    head="linear",
    missing_embedding="substitute",
):
    """A run folder as `mora train` leaves it, with a model that is not trained but far from its start."""
    count, multi_label = METRICS[metric]
    backbone = load_backbone(name)
    sha256 = backbone.fingerprint()
    config = MoraConfig(rank=2, alpha=0.05, last_layers=2)
    torch.manual_seed(seed)
    classifier = MissingModalityClassifier(
        backbone.model, count, backbone.missing_image, backbone.empty_text, head=head,
        missing_embedding=missing_embedding,
    )  # fmt: skip
    trained = adapt(backbone.model, method, config, 1.0)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for tensor in classifier.head_state().values() if head != "linear" else ():
            tensor.add_(0.5 * torch.randn_like(tensor))
        if head == "linear":
            classifier.head.weight.mul_(10)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(
        folder,
        {
            "data": {
                "source": "squares.csv",
                "name": "squares",
                "classes": list(WORDS[:count]),
                "metric": metric,
                "multi_label": multi_label,
                "rows": {"train": 40, "validation": 20, "test": 20},
                "fingerprints": {"train": "ab" * 32},
            },
            "backbone": {
                "name": name,
                "pretrained": None,
                "image_size": list(backbone.image_size),
                "sha256": sha256,
            },
            "mora": config.to_dict(),
            "method": method,
            "head": head,
            "missing_embedding": missing_embedding,
            "lora_scale": 1.0,
            "token_policy": token_policy,
            "tables": {"train": {"missing": "both:0.7", "seed": seed}},
            "train": TrainConfig(data="squares.csv", out=str(folder), method=method, mora=config, epochs=5).to_dict(),
            "versions": {"torch": torch.__version__},
        },
    )
    save_best(folder / BEST, classifier.eval(), method, config, {"epoch": 3, "validation": {metric: 0.5}})
    return folder
