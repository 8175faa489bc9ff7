"""The Triton kernels run in Triton's interpreter here, GPU or not; its flag is read when Triton is first imported.

Setting it before any test module is imported decides for the whole process. It changes nothing else: "auto" never picks
the interpreter. Tests marked `gpu` are for `TRITON_INTERPRET=0 pytest -m gpu`; `benchmarks/gpu.sh` makes their checks.
"""

import gc
import importlib.util
import os
import sys

os.environ.setdefault("TRITON_INTERPRET", "1")
INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from torch.utils._python_dispatch import _disable_current_modes  # noqa: E402

from mora_kernels.backend import interpreter_problem  # noqa: E402

if "PYTEST_XDIST_WORKER" in os.environ:  # `-n auto`: a process a core, which its threads would fight over
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

QUICK = pytest.MonkeyPatch()
if INTERPRETED and importlib.util.find_spec("triton"):
    from tests.interpreter import quicken

    quicken(QUICK)

ALLOCATORS = ("empty", "empty_like", "empty_strided")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    if INTERPRETED and importlib.util.find_spec("triton") and (problem := interpreter_problem()):
        raise pytest.UsageError(f"{problem}; TRITON_INTERPRET=0 runs the tests that need no interpreter")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if INTERPRETED or not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device and TRITON_INTERPRET=0"))


def pytest_collection_finish() -> None:
    """What modules made lives on: no collection of garbage looks through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is NaN for whoever calls from mora_kernels: what a kernel forgets to write shows."""

    def wrap(original):
        def allocate(*args, **kwargs):
            result = original(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.startswith("mora_kernels") and result.is_floating_point() and result.device.type != "meta":
                with _disable_current_modes():  # not a launch of the code under test
                    result.fill_(float("nan"))
            return result

        return allocate

    for name in ALLOCATORS:
        monkeypatch.setattr(torch, name, wrap(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, wrap(getattr(torch.Tensor, name)))


@pytest.fixture
def launches():
    """The names of the Triton kernels that ran during the test."""
    from mora_kernels.launches import counted

    with counted(library=False) as names:
        yield names
