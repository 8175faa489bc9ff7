"""The two tasks of the demo: one that adapters can learn, and one that a new concept makes hard."""

from __future__ import annotations

from typing import NamedTuple


class Task(NamedTuple):
    """A data set with what is asked of it.

    Attributes:
        data: as `mora train --data` takes it.
        title: a few words.
        asks: what a row is and what is asked, in a sentence.
        note: what to know when its numbers are read.
    """

    data: str
    title: str
    asks: str
    note: str


TASKS = {
    "badges": Task(
        data="openmoji-badges",
        title="badges on new drawings",
        asks="An emoji carries a small badge in a corner, and its words name the badge: which of 15 is it? No emoji of "
        "the test part is in training; the badges are the same.",
        note="What is asked is an attribute that every class shares over all emoji, so a change of a block can learn "
        "to look for it: the kind of task adapters are for.",
    ),
    "subgroups": Task(
        data="openmoji",
        title="sub-groups of new emoji",
        asks="Which of Unicode's 101 sub-groups is an emoji of? No emoji of the test part is in training.",
        note="The hard case: an emoji that was never seen is a new concept, of which a low-rank change of one block "
        "cannot know; it can only arrange anew what the CLIP brings along. Methods differ little here.",
    ),
}
