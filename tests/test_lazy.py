"""`import mora` waits for nothing; its names are functions and classes in every import order."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

import mora

ROOT = Path(__file__).parents[1]
COMMANDS = [
    "",
    "demo",
    "data",
    "data build",
    "data check",
    "data table",
    "train",
    "sweep",
    "inspect",
    "evaluate",
    "embed",
    "predict",
    "merge",
    "adapters",
    "adapters list",
    "adapters add",
    "adapters delete",
    "adapters combine",
    "doctor",
]


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_public_name_has_a_place():
    assert set(mora.PLACES) == set(mora.__all__) - {"__version__"}
    assert set(mora.__all__) <= set(dir(mora))
    with pytest.raises(AttributeError, match="module 'mora' has no attribute 'path'"):
        mora.path  # noqa: B018


FIRST = [
    "pass",
    "import mora.adapters.patching",
    "import mora.adapters.overview, mora.adapters.verification",
    "import mora.runs.methods",
    "from mora.adapters.patching import admitted",
    "from mora import patch, verify",
    "import mora.cli",
    "import mora.training.trainer",
    "import importlib; importlib.import_module('mora.adapters.verification')",
    "from mora import *",
]


CHECK = """
import sys, mora, mora.adapters.patching, mora.adapters.overview, mora.adapters.verification
assert sys.modules["mora.adapters.patching"].patch is mora.patch
assert [type(getattr(mora, name)).__name__ for name in ("patch", "summary", "verify", "merge")] == ["function"] * 4
from mora import patch, summary, verify
assert patch is mora.patch and callable(summary) and callable(verify)
assert mora.MoraLinear is sys.modules["mora.methods.linear"].MoraLinear
"""
ORDERS = """
import sys, torch
for first in {first!r}:
    for name in [name for name in sys.modules if name.split(".")[0] == "mora"]:
        del sys.modules[name]
    exec(first, {{}})
    exec({check!r}, {{}})
print("right")
"""


def test_functions_keep_their_names_whatever_is_imported_first():
    assert run(ORDERS.format(first=FIRST, check=CHECK)) == "right"


LIGHT = """
import sys
from mora.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0
heavy = {"torch", "numpy", "open_clip", "transformers", "PIL", "safetensors", "rich"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    assert "usage: mora" in run(LIGHT, *command.split(), "--help")


def test_help_and_version_are_quick():
    for option in ("--help", "--version"):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            run(LIGHT, option)
            times.append(time.perf_counter() - began)
        assert min(times) < 0.5, times
