"""What the tiny CLIP's embeddings know: linear heads on OpenMoji's subgroups, and zero-shot accuracy.

python scripts/probe_tiny_clip.py           # validation
python scripts/probe_tiny_clip.py --test    # once, when everything is decided
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mora.tiny
from mora.data.sources import openmoji

STEPS, RATE, DECAY = 300, 1e-2, 1.0  # the decay was chosen on validation


@torch.no_grad()
def embed(model: Any, preprocess: Any, tokenizer: Any, split: str) -> dict[str, Tensor]:
    """Un-normalised image and text embeddings [N, 128], their concatenation, and the labels [N]."""
    samples = openmoji.load(split, mora.tiny.IMAGE_SIZE)
    batches = samples.images.split(256)
    image = torch.cat([model.encode_image(preprocess(batch)) for batch in batches])
    tokens = tokenizer(samples.texts).split(256)
    text = torch.cat([model.encode_text(batch) for batch in tokens])
    both = torch.cat([image, text], dim=1)
    return {"image": image, "text": text, "both": both, "labels": samples.labels}


def probe(train: dict[str, Tensor], test: dict[str, Tensor], seed: int = 0) -> dict[str, float]:
    """Accuracy on ``test`` of ``nn.Linear`` heads trained full-batch on ``train``, by modality."""
    accuracy = {}
    for name in ("image", "text", "both"):
        torch.manual_seed(seed)
        inputs, targets = train[name].clone(), train["labels"]
        head = nn.Linear(inputs.shape[1], len(openmoji.classes()))
        optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, weight_decay=DECAY)
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.cross_entropy(head(inputs), targets).backward()
            optimizer.step()
        with torch.no_grad():
            hits = head(test[name]).argmax(dim=1) == test["labels"]
        accuracy[name] = round(hits.float().mean().item(), 4)
    return accuracy


def class_prompt(name: str) -> str:
    """A subgroup as words: ``"animal-mammal"`` is ``"animal mammal"``."""
    return name.replace("-", " ").replace("&", "and")


@torch.no_grad()
def zero_shot(model: Any, tokenizer: Any, samples: dict[str, Tensor]) -> float:
    """Share of images nearest to the text of their own class among the 101 class names."""
    prompts = tokenizer([class_prompt(name) for name in openmoji.classes()])
    classes = F.normalize(model.encode_text(prompts), dim=1)
    nearest = (F.normalize(samples["image"], dim=1) @ classes.T).argmax(dim=1)
    return round((nearest == samples["labels"]).float().mean().item(), 4)


def main() -> None:
    """Print the numbers of the packaged weights as JSON."""
    parser = argparse.ArgumentParser(description="Probe the packaged tiny CLIP.")
    parser.add_argument("--test", action="store_true", help="the test split instead of validation")
    split = "test" if parser.parse_args().test else "validation"
    model, preprocess, tokenizer = mora.tiny.load()
    train = embed(model, preprocess, tokenizer, "train")
    held_out = embed(model, preprocess, tokenizer, split)
    majority = (held_out["labels"] == train["labels"].mode().values).float().mean().item()
    numbers = {"split": split, "n": len(held_out["labels"]), "majority": round(majority, 4)}
    numbers |= {"zero_shot": zero_shot(model, tokenizer, held_out)}
    print(json.dumps(numbers | {"linear_head": probe(train, held_out)}))


if __name__ == "__main__":
    main()
