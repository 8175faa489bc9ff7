"""What the pages of docs/ name exists: files, names of Python, commands and their options."""

import argparse
import importlib
import re
from pathlib import Path

import pytest

from mora.cli import make_parser

pytest.importorskip("torchmetrics")
ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
FOLDERS = "mora|mora_kernels|tests|benchmarks|scripts|docs"


def page(path):
    return pytest.param(path.read_text(encoding="utf-8"), id=path.relative_to(ROOT).as_posix())


def found(name):
    """Whether a dotted name is a module, or an attribute of what stands before its last dot."""
    try:
        return bool(importlib.import_module(name))
    except ImportError:
        place, _, last = name.rpartition(".")
        if not place:
            return False
        if place in ("mora", "mora_kernels"):
            return hasattr(importlib.import_module(place), last)
        owner, _, inner = place.rpartition(".")
        try:
            holder = importlib.import_module(place)
        except ImportError:
            holder = getattr(importlib.import_module(owner), inner) if owner and found(place) else None
        return hasattr(holder, last) or last in getattr(holder, "__dataclass_fields__", {})


def options(parser):
    """Every option of a command and of those below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options(below)


@pytest.mark.parametrize("text", [page(path) for path in PAGES])
def test_files_that_are_named_exist(text):
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text))
    assert not {path for path in named if not (ROOT / path).exists()}


@pytest.mark.parametrize("text", [page(path) for path in PAGES])
def test_names_of_python_exist(text):
    named = set(re.findall(r"(?<![\w./-])((?:mora|mora_kernels)(?:\.[a-zA-Z_]\w*)+)(?![\w/]|\.\w)", text))
    assert not {name for name in named if not found(name)}


@pytest.mark.parametrize("text", [page(path) for path in PAGES])
def test_commands_and_their_options_exist(text):
    parser = make_parser()
    commands = {**next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))}
    text = text.replace("\\\n", " ")
    lines = re.findall(r"(?:^|`|\$ |&& )mora ([a-z]+)\b([^`\n]*)", text, re.M)
    lines = [(name, rest) for name, rest in lines if name in commands or rest.startswith(" --")]
    wrong = {name for name, _ in lines} - {*commands}
    for name, rest in lines:
        known = set(options(commands[name])) if name in commands else set()
        wrong |= {
            f"mora {name} {option}"
            for option in re.findall(r"(?<!\S)--[a-z-]+", rest.split("#")[0])
            if option not in known
        }
    assert not wrong
