"""One hint for every package that may be absent: what for, and a command that installs it."""

import ast
import re
import sys
from pathlib import Path

import pytest

from mora.system.machine import DISTRIBUTIONS, device_of, how_to_install, installed, need

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()


def test_a_package_that_is_there_is_its_module():
    assert need("json", "reading") is sys.modules["json"]


@pytest.mark.parametrize(
    ("package", "extra", "message"),
    [
        ("pyarrow.parquet", None, "reading needs pyarrow: pip install 'mora-kernels[train]'"),
        ("PIL.Image", None, "reading needs pillow: pip install 'mora-kernels[train]'"),
        ("transformers", None, "reading needs transformers: pip install 'mora-kernels[hf]'"),
        ("transformers", "train", "reading needs transformers: pip install 'mora-kernels[train]'"),
        ("open_clip", None, "reading needs open_clip_torch: pip install open_clip_torch"),
    ],
)
def test_an_absent_package_is_named_with_its_cure(monkeypatch, package, extra, message):
    for name in [name for name in sys.modules if name.split(".")[0] == package.split(".")[0]]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package.split(".")[0], None)
    with pytest.raises(ImportError) as caught:
        need(package, "reading", extra)
    assert str(caught.value) == message


def calls():
    """(package, extra) of every call of `need` in the library."""
    for path in ROOT.glob("mora/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.Call) and getattr(node.func, "id", None) == "need"
            if named and isinstance(node.args[0], ast.Constant):
                extra = next((word.value.value for word in node.keywords if word.arg == "extra"), None)
                yield node.args[0].value, extra


def brought(extra):
    """The distributions an extra brings, or every installation where it is empty."""
    name = extra or "dependencies"
    return re.findall(r'"([\w-]+)', re.search(rf"^{name} = \[(.*?)\]", PROJECT, re.M | re.S)[1])


def test_the_cure_brings_the_package():
    found = set(calls())
    assert len(found) > 8
    for package, extra in found:
        root = package.partition(".")[0]
        named = re.search(r"\[(\w+)\]", how_to_install(root, extra))
        assert DISTRIBUTIONS.get(root, root) in brought(named and named[1]), package


def test_versions_of_what_is_installed():
    assert installed(["torch", "no-such-package"]).keys() == {"torch"}


def test_devices():
    assert device_of("cpu").type == "cpu" and device_of("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match="device: got 'abacus', expected one that is there"):
        device_of("abacus")
