"""A git revision against the working tree, round by round: `pytest benchmarks/ --benchmark --baseline REV`.

Three processes build the same case: the revision, the revision again, and the working tree, all with the working
tree's benchmark code. They run in turn, one round each, so that a drifting machine moves all three alike. The ratio of
the revision to itself is the noise: a ratio within it says nothing.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from benchmarks import rows
from benchmarks.case import Shape
from benchmarks.environment import ROOT, git
from benchmarks.harness import EFFORT
from benchmarks.measure.timing import Spread
from benchmarks.sizes import Scale

PLACES = ("revision", "revision again", "tree")
ROUND = 0.02  # seconds that a round should last: a faster provider runs several times


@dataclass(frozen=True)
class Comparison:
    """How many times as fast the working tree is as the revision, and the revision as itself; rounds of each."""

    name: str
    ratio: Spread
    noise: Spread
    rounds: int

    @property
    def verdict(self) -> str:
        """ "faster" or "slower" where the spreads of the ratio and of the noise do not meet, else "no difference"."""
        if self.ratio.p20 > self.noise.p80:
            return "faster"
        return "slower" if self.ratio.p80 < self.noise.p20 else "no difference"


COMPARISONS: list[Comparison] = []


def checkout(revision: str, root: Path = ROOT) -> Path:
    """A worktree of a revision, with the working tree's `benchmarks/` in it; removed when the process ends.

    Raises ValueError for an unknown revision.
    """
    try:
        commit = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", root=root)
    except subprocess.CalledProcessError as error:
        raise ValueError(f"--baseline: got {revision!r}, expected a git revision of {root}") from error
    folder = Path(tempfile.mkdtemp(prefix="mora-baseline-"))
    git("worktree", "add", "--detach", str(folder / "tree"), commit, root=root)
    atexit.register(remove, folder, root)
    shutil.rmtree(folder / "tree" / "benchmarks", ignore_errors=True)
    shutil.copytree(root / "benchmarks", folder / "tree" / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "tree"


def remove(folder: Path, root: Path) -> None:
    """Take a worktree away again."""
    subprocess.run(["git", "worktree", "remove", "--force", str(folder / "tree")], cwd=root, check=False)
    shutil.rmtree(folder, ignore_errors=True)


class Worker:
    """One process that holds the library of one checkout and runs rounds when asked."""

    def __init__(self, tree: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.regression"],
            cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        atexit.register(self.process.kill)

    def ask(self, **question: Any) -> Any:
        """Send one question and wait for its answer; RuntimeError with the worker's own words when it fails."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {question} ended with {self.process.wait()}: see its output above")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


@functools.cache
def workers(revision: str) -> dict[str, Worker]:
    """The three processes, started once."""
    tree = checkout(revision)
    return {"revision": Worker(tree), "revision again": Worker(tree), "tree": Worker(ROOT)}


def compare(
    level: ModuleType, shape: Shape, scale: Scale, revision: str, extra: dict[str, Any] | None = None
) -> list[float]:
    """Return the working tree's seconds, a number per round; the comparison goes to `COMPARISONS` and `extra`."""
    running = workers(revision)
    for worker in running.values():
        worker.ask(level=level.NAME, shape=shape, scale=scale)
    least = 3 if scale.smoke else max(9, EFFORT[level.NAME].rounds)
    seconds: dict[str, list[float]] = {place: [] for place in PLACES}
    for turn in range(least):
        for place in PLACES if turn % 2 == 0 else PLACES[::-1]:
            seconds[place].append(running[place].ask(run=True)["seconds"])
    found = compared(f"{level.NAME} {rows.key(shape)}", seconds)
    COMPARISONS.append(found)
    if extra is not None:
        extra.update(asdict(found), verdict=found.verdict, revision=revision)
    return seconds["tree"]


def compared(name: str, seconds: dict[str, list[float]]) -> Comparison:
    """Ratios round by round: what ran in the same moments is divided."""
    old, again, new = (seconds[place] for place in PLACES)
    ratio = [a / b for a, b in zip(old, new, strict=True)]
    noise = [a / b for a, b in zip(old, again, strict=True)]
    return Comparison(name, Spread.of(ratio), Spread.of(noise), len(new))


def serve(questions: IO[str], answers: IO[str]) -> None:
    """Answer questions until there are no more: build a case, check it, or run its provider once."""
    import importlib

    import torch

    from benchmarks.measure.timing import CpuTimer, CudaTimer

    provider: Any = None
    timer: Any = None
    calls = 1
    for line in questions:
        question = json.loads(line)
        try:
            if "level" in question:
                torch.manual_seed(0)
                scale = Scale(*question["scale"])
                case = importlib.import_module(f"benchmarks.levels.{question['level']}").build(question["shape"], scale)
                provider = case.providers["triton" if "triton" in case.providers else ours(list(case.providers))]
                del case  # the other providers' models
                provider.check()
                provider.run()
                timer = CudaTimer() if scale.device == "cuda" else CpuTimer()
                calls = max(1, min(1000, round(ROUND / timer.measure(provider.run, 1)[0])))
                answer = {"ready": True}
            else:
                answer = {"seconds": timer.measure(provider.run, calls)[0]}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def ours(names: list[str]) -> str:
    """The provider that is this library's, of a case without a GPU."""
    return "torch" if "torch" in names else "patched"


if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr; answers have the pipe to themselves
    serve(sys.stdin, out)
