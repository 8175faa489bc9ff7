"""What the demo compares, and how each is trained: methods of `mora train` under names of their own."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """One line of the tables.

    Attributes:
        label: its name there.
        method: of `mora train`.
        scale: the field that scales its update: "alpha", "lora_scale", or None where it has none.
        init: of `MoraConfig`.
    """

    label: str
    method: str
    scale: str | None = None
    init: str = "official"


METHODS = {
    "frozen": Method("frozen + head", "linear"),
    "last-block": Method("last block, all of it", "last-block"),
    "lora": Method("LoRA", "lora", "lora_scale"),
    "dora": Method("DoRA", "dora", "lora_scale"),
    "mora": Method("MoRA", "mora", "alpha"),
    "mora-identity": Method("MoRA, identity start", "mora", "alpha", "identity"),
    "mora-no-gram": Method("MoRA, no Gram", "mora-no-gram", "alpha"),
    "mora-fixed-gram": Method("MoRA, fixed Gram", "mora-fixed-gram", "alpha"),
    "mora-no-specific": Method("MoRA, no specific", "mora-no-specific", "alpha"),
}
OURS = tuple(name for name in METHODS if name.startswith("mora"))
QUICK = ("frozen", "lora", "mora")  # what three minutes on two cores allow
CURVE = ("lora", "mora")  # those trained on complete rows as well
LABELS = {name: method.label for name, method in METHODS.items()}
