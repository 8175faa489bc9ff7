"""`--benchmark` times at full size; without it the same files run on toys, as smoke tests, and write nothing.

Every test is one provider of one case. The first test of a case checks all its providers and times them in turn; each
test then hands its provider's rounds to pytest-benchmark, whose statistics, tables, storage and comparisons work as for
any other benchmark: `--benchmark-save`, `--benchmark-compare`, `--benchmark-json`, `--benchmark-histogram`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import rows
from benchmarks.case import Shape
from benchmarks.sizes import Scale

for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
    del os.environ[name]  # a run that a test starts is one of its own

LEVELS = (
    "operations", "towers", "switch", "host", "projection", "attention", "training_step", "epoch", "inference",
    "savings",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mora-kernels")
    group.addoption("--benchmark", action="store_true", help="time at full size and append rows to benchmarks/results")
    group.addoption("--results", type=Path, default=rows.RESULTS, metavar="FOLDER", help="where --benchmark writes")
    group.addoption("--levels", nargs="+", choices=LEVELS, metavar="LEVEL", help=f"of {', '.join(LEVELS)} only these")
    group.addoption("--device", choices=("cpu", "cuda"), help="where to run (default: cuda where there is one)")
    group.addoption(
        "--baseline", metavar="REV", help="with --benchmark: time the library of this git revision against the tree's"
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One process where something is timed."""
    return 0 if config.getoption("--benchmark") else None


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--benchmark"):
        if config.getoption("--baseline"):
            raise pytest.UsageError("--baseline: got no --benchmark, expected both")
        config.option.benchmark_disable = True  # toys say nothing: no statistics of them
        return
    asked = ("benchmark_verbose", "benchmark_compare", "benchmark_histogram", "benchmark_columns")
    if not any(config.getoption(name, None) for name in asked):
        config.option.benchmark_quiet = True  # the summary below says more
    if hasattr(config, "workerinput") or config.getoption("numprocesses", None) not in (None, 0, "auto"):
        raise pytest.UsageError("--benchmark: got -n, expected one process: others would disturb the timing")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """At full size only what is timed runs, and takes the time it takes."""
    if config.getoption("--benchmark"):
        timed = [item for item in items if "cell" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in timed])
        items[:] = timed
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


def scale_of(config: pytest.Config) -> Scale:
    """Where and how large to run."""
    device = config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")
    return Scale(device, not config.getoption("--benchmark"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per case and provider for files that name their level."""
    name = getattr(metafunc.module, "LEVEL", None)
    if name is None or "cell" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--levels")
    level = importlib.import_module(f"benchmarks.levels.{name}")
    shapes = level.shapes(scale_of(metafunc.config)) if not chosen or name in chosen else []
    providers = ("tree",) if metafunc.config.getoption("--baseline") else level.PROVIDERS
    cells = [(level, shape, provider) for shape in shapes for provider in providers]
    metafunc.parametrize("cell", cells, ids=[f"{identity(shape)}-{provider}" for _, shape, provider in cells])


def identity(shape: Shape) -> str:
    """A shape in words, for a test's name."""
    return "-".join(
        f"{name}={value}" if isinstance(value, (int, float)) else str(value) for name, value in shape.items()
    )


class Recorded:
    """The timer that pytest-benchmark reads when seconds were measured before, in turn with other providers."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def replay(self, benchmark: Any, seconds: list[float]) -> None:
        """Let `benchmark` see rounds that take exactly these seconds."""
        rounds: Iterator[float] = iter(seconds)

        def advance() -> None:
            self.now += next(rounds)

        benchmark.pedantic(advance, rounds=len(seconds))


CLOCK = Recorded()
MEASURED: list[rows.Row] = []
REFUSED: list[str] = []  # one wrong result, and the run prints and writes nothing


class Measured:
    """The case measured last: its tests follow one another."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.key: tuple[str, str] | None = None
        self.error: BaseException | None = None

    def __call__(self, level: ModuleType, shape: Shape) -> Measured:
        """Measure a case unless it was measured last."""
        from benchmarks.harness import measure

        key = (level.NAME, rows.key(shape))
        if key != self.key:
            self.key, self.error = key, None
            try:
                self.case, self.rows, self.times = measure(level, shape, self.scale)
            except KeyboardInterrupt:  # what was measured before is right, and is written
                self.key = None
                raise
            except BaseException as error:
                self.error = error
                REFUSED.append(f"{level.NAME} {identity(shape)}")
                raise
            MEASURED.extend(self.rows)
        if self.error is not None:
            pytest.fail(f"nothing was timed: {self.error}", pytrace=False)
        return self


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Measured:
    """Measures cases."""
    return Measured(scale_of(request.config))


@pytest.fixture
def replay(request: pytest.FixtureRequest, benchmark: Any, measured: Measured) -> Any:
    """Hands one provider's rounds to pytest-benchmark, with its row's other figures as extra information."""

    def hand_over(cell: tuple[ModuleType, Shape, str]) -> None:
        level, shape, provider = cell
        if revision := request.config.getoption("--baseline"):
            from benchmarks.regression import compare

            benchmark.group, benchmark.name = f"{level.NAME} {identity(shape)}", "working tree"
            CLOCK.replay(benchmark, compare(level, shape, measured.scale, revision, benchmark.extra_info))
            return
        found = measured(level, shape)
        if provider not in found.case.providers:
            pytest.skip(found.case.absent.get(provider, "not for this case"))
        row = next(row for row in found.rows if row["provider"] == provider)
        benchmark.group, benchmark.name = f"{level.NAME} {identity(shape)}", provider
        benchmark.extra_info.update({k: row[k] for k in ("times_faster", "peak", "saved", "launches", "baseline")})
        CLOCK.replay(benchmark, found.times[row["mode"], provider].work)

    return hand_over


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Append the rows of a run at full size, all together, unless one result was wrong."""
    if session.config.getoption("--benchmark") and MEASURED and not REFUSED:
        rows.append(MEASURED, session.config.getoption("--results"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Every case that was measured, provider by provider; or the comparison with a revision."""
    if not config.getoption("--benchmark"):
        return
    from benchmarks.regression import COMPARISONS
    from benchmarks.summary import compared_lines, measured_lines

    if REFUSED:
        terminalreporter.section("benchmarks")
        number = "1 case has" if len(REFUSED) == 1 else f"{len(REFUSED)} cases have"
        terminalreporter.write_line(f"refused: {number} wrong results, so no time is shown or written")
        return
    lines = measured_lines(MEASURED) if MEASURED else compared_lines(COMPARISONS, config.getoption("--baseline"))
    if lines:
        terminalreporter.section("benchmarks")
        for line in lines:
            terminalreporter.write_line(line)
        if MEASURED:
            terminalreporter.write_line(f"{len(MEASURED)} rows appended to {config.getoption('--results')}")
