"""The list of planted bugs fits the kernels as they are; `python -m tests.planted` plants them."""

import pytest

from tests.planted import BUGS, ROOT


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_bug_has_its_place(bug):
    assert (ROOT / "mora_kernels" / bug.path).read_text(encoding="utf-8").count(bug.old) == 1 and bug.old != bug.new


def test_names_are_told_apart():
    assert len({bug.name for bug in BUGS}) == len(BUGS)
