"""The tutorial runs as it stands, block by block, and prints what it shows."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from mora.cli import main

pytest.importorskip("accelerate")
ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.S)
# What depends on rounding, seconds and how pictures are packed: figures, fingerprints, the best epoch.
FIGURE = re.compile(r"\b[0-9a-f]{12}\b|\d[\d.,:]*(e-\d+)?| \(best\)")


def blocks():
    return BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))


def without_figures(text):
    return " ".join(FIGURE.sub("#", text).split())


def run(kind, code, names):
    """What one block prints; commands run in this process, Python in one namespace."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):  # training speaks to the second
        if kind == "python":
            exec(code, names)
        for line in code.replace("\\\n", "").splitlines() if kind == "sh" else ():
            command, *arguments = shlex.split(line, comments=True)
            assert command == "mora" and main(arguments) == 0, line
    return out.getvalue()


def test_the_tutorial_runs_and_prints_what_it_shows(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names, printed, ran = {}, "", []
    for kind, code in blocks():
        if code.startswith("image,text,label"):
            assert (tmp_path / "shop" / "products.csv").read_text().startswith(code.replace("...\n", ""))
        elif kind == "text":
            rest = without_figures(printed)
            for line in filter(None, map(without_figures, code.replace("...", "\n").splitlines())):
                assert line in rest, f"{line!r} is not in what came:\n{printed}"
                rest = rest.split(line, 1)[1]
        else:
            printed = run(kind, code, names)
            ran += [kind]
    assert ran == ["python", "sh", "sh", "sh", "sh", "sh", "python", "python"]
    assert {path.name for path in (tmp_path / "results" / "shop").iterdir()} > {"plot.png", "report.md", "results.csv"}
