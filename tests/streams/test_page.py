"""The example of the page about single-stream models runs as it stands, and learns with a modality missing."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "single_stream.md").read_text()
CHANCE = 0.25


def test_a_stream_learns_from_rows_that_lack_a_modality():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {}
    exec(code, names)
    found = names["train"](adapted=True, steps=60, size=32)
    assert {*found} == {"complete", "no image", "no text"}
    assert all(accuracy > 2 * CHANCE for accuracy in found.values()), found
