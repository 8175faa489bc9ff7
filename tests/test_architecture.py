"""The structure keeps its promises: public names, import arrows, light imports, readable sizes."""

import ast
import functools
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mora
import mora_kernels

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("mora/**/*.py"), *ROOT.glob("mora_kernels/**/*.py")])
# The house from the ground up. An import, at any depth and for types too, stays in its room or goes to a lower floor:
# never up, and never to another room of the same floor. A new file or folder of mora/ gets its place here.
FLOORS = (
    ("mora_kernels",),
    ("mora.version", "mora.patterns"),
    ("mora.heads", "mora.system"),
    ("mora.bases", "mora.fields", "mora.metrics", "mora.tiny"),
    ("mora.contrast", "mora.data", "mora.projection"),
    ("mora.lora",),
    ("mora.config",),
    ("mora.methods",),  # from here on what is put into a model
    ("mora.streams",),
    ("mora.towers",),
    ("mora.adapters",),  # the verbs on a model
    ("mora.named", "mora.savings"),
    ("mora.checkpoint", "mora.classifier"),
    ("mora.runs",),
    ("mora.diagnosis",),
    ("mora.evaluation", "mora.training"),
    ("mora.census", "mora.export", "mora.sweeping"),
    ("mora.demo",),
    ("mora.cli",),
    ("mora",),  # the public names
)


def module_of(path):
    """The dotted name of a source file; a package's own file has the package's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


@functools.cache
def statements(path):
    """The import statements of a file, at any depth."""
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def imports(path):
    """Dotted names a file imports, at any depth."""
    for node in statements(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported(path):
    """The modules of this project that a file imports, at any depth; a package only for names that are its own."""
    own = module_of(path)
    for node in statements(path):
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [whole if (whole := f"{node.module}.{name}") in MODULES else node.module for name in names]
        yield from (name for name in names if name in MODULES and name != own)


GRAPH = {name: sorted(set(imported(path))) for name, path in MODULES.items()}
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def room_of(module):
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "mora" else parts[0]


def test_every_room_stands_on_a_floor():
    assert {*map(room_of, MODULES)} == {*FLOOR}


def test_no_import_runs_up():
    rising = {
        (module, other)
        for module, others in GRAPH.items()
        for other in others
        if room_of(module) != room_of(other) and FLOOR[room_of(other)] >= FLOOR[room_of(module)]
    }
    assert rising == set()


def test_no_imports_run_in_a_circle():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_public_names():
    contract = {
        "MoraConfig", "PRESETS", "patch", "unpatch", "merge", "disabled", "adapter_parameters", "adapter_state_dict",
        "save_adapter", "load_adapter", "load_official", "save_official", "verify", "summary", "MoraLinear", "keeping",
        "forget", "MissingModalityClassifier", "Hidden", "PrefixCache", "Savings", "Sweep", "Tower",
        "sweep", "train", "__version__", "diagnose", "Diagnosis", "active_adapter", "add_adapter", "set_adapter",
        "save_adapters", "delete_adapter", "using", "combine", "unmerge", "to_peft", "embed", "route",
    }  # fmt: skip
    assert set(mora.__all__) == contract
    assert {"effective_weight", "gram", "mora_linear"} <= set(mora_kernels.__all__)
    for package in (mora, mora_kernels):
        for name in package.__all__:
            assert name.startswith("__") or name == "PRESETS" or getattr(package, name).__doc__, name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    """mora -> mora_kernels -> reference | torch | triton; the reference knows no other backend."""
    place = path.relative_to(ROOT).as_posix()
    found = set(imports(path))
    if place.startswith("mora_kernels"):
        assert not [name for name in found if name == "mora" or name.startswith("mora.")]
    if place == "mora_kernels/reference.py" or place.startswith("mora_kernels/triton"):
        assert not [name for name in found if name.startswith("mora_kernels.torch")]
    if place == "mora_kernels/reference.py" or place.startswith("mora_kernels/torch"):
        assert not [name for name in found if name.startswith("mora_kernels.triton")]
    if not place.startswith("mora_kernels/triton"):
        assert not [name for name in found if name == "triton" or name.startswith("triton.")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_can_be_read_in_one_sitting(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300, f"{path} has {len(text.splitlines())} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            kernel = any("jit" in ast.dump(decorator) for decorator in node.decorator_list)
            lines = node.end_lineno - node.lineno + 1
            assert lines <= (120 if kernel else 70), f"{path}: {node.name} has {lines} lines"


ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("open_clip", "transformers", "triton", "rich", "peft", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import mora, mora_kernels, torch
factors = [torch.randn(4, 2), torch.randn(3, 2), torch.randn(4, 2), torch.randn(2, 4), torch.rand(4), torch.rand(4)]
print(tuple(mora_kernels.effective_weight(torch.randn(4, 4), *factors, 0.1).shape))
"""


def test_import_works_without_the_optional_packages():
    result = subprocess.run([sys.executable, "-c", ABSENT], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.stdout.strip() == "(4, 4)", result.stderr


def test_import_is_light():
    code = "import sys, mora; print(*{n.split('.')[0] for n in sys.modules} & {'open_clip', 'transformers', 'rich'})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == ""


def test_changelog_names_the_version():
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    newest = next(line for line in lines if line.startswith("## "))
    assert mora.__version__ in newest
