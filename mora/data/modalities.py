"""Which modalities there are, by name: image, text and audio, and what is registered beside them.

A built-in one is a file with a `Modality` and a place in `BUILT_IN`. One of your own is `register(Modality)`, before
data that has it is opened: see `mora.data.modality`.
"""

from __future__ import annotations

from collections.abc import Iterable

from mora.data.audio import Audio
from mora.data.images import Images
from mora.data.modality import Modality
from mora.data.texts import Texts
from mora.system.messages import shown

IMAGE, TEXT = "image", "text"
BUILT_IN: tuple[Modality, ...] = (Images(), Texts(), Audio())
# Columns of a manifest that are none, and words of missing tables.
TAKEN = ("label", "split", "index", "both", "either", "any", "none", "train", "validation", "test", "all", "val", "dev")
_known: dict[str, Modality] = {one.name: one for one in BUILT_IN}


def register(modality: Modality, replace: bool = False) -> Modality:
    """Make a modality known by its name, for manifests, missing tables and the command line; returns it.

    Raises ValueError for a name that is no plain word, means something else, or is taken, unless `replace`.
    """
    if not isinstance(modality, Modality):
        raise TypeError(f"modality: got {type(modality).__name__}, expected a mora.data.Modality")
    name = modality.name
    if not isinstance(name, str) or not name.isidentifier() or name in TAKEN:
        raise ValueError(f"modality: got the name {shown(name)}, expected a plain word such as 'audio'")
    if name in _known and not replace:
        raise ValueError(f"modality: got {name!r}, which is registered already, expected another name, or replace=True")
    _known[name] = modality
    return modality


def unregister(name: str) -> None:
    """Forget a modality that `register` made known; built-in ones come back. Nothing for a name that is not known."""
    _known.pop(name, None)
    _known.update({one.name: one for one in BUILT_IN if one.name == name})


def modality(name: str) -> Modality:
    """The modality of a name; ValueError that lists those there are."""
    if name not in _known:
        raise ValueError(f"modality: got {shown(name)}, expected one of {', '.join(map(repr, _known))}")
    return _known[name]


def known() -> tuple[str, ...]:
    """The names of all, in the order in which they were registered: image and text first."""
    return tuple(_known)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names in the order in which they were registered, unknown ones last, each once."""
    given = dict.fromkeys(names)
    return (*(name for name in _known if name in given), *(name for name in given if name not in _known))
