"""A split for data that comes without one: by content, stratified, the same on every machine."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

SHARES = {"validation": 0.1, "test": 0.1}  # the rest is train


def divide(contents: Sequence[str], labels: Sequence[tuple[str, ...]], seed: int) -> list[str]:
    """`"train"`, `"validation"` or `"test"` for each row: about 80, 10 and 10 % of every class.

    Rows of one content (the same image, or the same text where there is no image) stay together, so that no picture is
    trained on and tested with. Each content counts for its rarest label; within a label, contents are ordered by
    a hash of content and seed, so that the split of a row does not depend on where it stands. A label of three
    contents or more has one in each part, of two one in train and one in test, of one only in train; every label is
    in train.
    """
    labelled: dict[str, set[str]] = defaultdict(set)
    for content, several in zip(contents, labels, strict=True):
        labelled[content].update(several)
    frequency = Counter(label for several in labelled.values() for label in several)
    members: dict[str, list[str]] = defaultdict(list)
    for content in sorted(labelled, key=lambda content: _hash(content, seed)):
        members[min(labelled[content], key=lambda label: (frequency[label], label))].append(content)
    part = dict.fromkeys(labelled, "train")
    for found in members.values():
        start = 0
        for split, share, smallest in (("test", SHARES["test"], 2), ("validation", SHARES["validation"], 3)):
            stop = start + (max(1, round(share * len(found))) if len(found) >= smallest else 0)
            part.update(dict.fromkeys(found[start:stop], split))
            start = stop
    _train_every_label(part, labelled, seed)
    return [part[content] for content in contents]


def _train_every_label(part: dict[str, str], labelled: dict[str, set[str]], seed: int) -> None:
    """Move a content into train for each label that occurs only next to rarer ones, and so may have none there."""
    seen = {label for content, split in part.items() if split == "train" for label in labelled[content]}
    for content in sorted(part, key=lambda content: _hash(content, seed)):
        if not labelled[content] <= seen:
            part[content] = "train"
            seen |= labelled[content]


def _hash(content: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{content}".encode("utf-8", "surrogatepass")).digest()
