"""What a person runs on a GPU: parts with time limits, each in a process of its own, the worst news first.

benchmarks/gpu.sh [--plan | --smoke] [--parts NAME ...] [--out FOLDER]
benchmarks/gpu.sh --everything [any option of pytest, for instance --levels projection]

Exit code 0; 1 where a result is wrong or a check did not end well; 3 where only a timing was lost.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import math
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

BEGAN = time.perf_counter()  # before the imports below, which take their time

from benchmarks.gpu_parts import FAILED, NAMES, NEEDS_GPU, OK, PARTS, SKIPPED, START, Part, run  # noqa: E402
from benchmarks.sizes import Scale  # noqa: E402
from mora_kernels import backend as backends  # noqa: E402

TIMED_OUT = "timed out"
WORST_FIRST = ("failed", TIMED_OUT, SKIPPED, OK)
LOG, SUMMARY = "gpu.log", "gpu_summary.json"
SMOKE_SECONDS = 120  # of each part on a CPU that may be busy
WITHOUT_LIMIT = 3600
TOTAL = 355  # seconds that a run of all parts may take until its last part is killed


@dataclass(frozen=True)
class Outcome:
    """How a part ended: one of `WORST_FIRST`, why, and how long it took of how much."""

    part: str
    outcome: str
    detail: str
    seconds: float
    limit: int
    check: bool
    wrong: bool

    @property
    def code(self) -> int:
        """What it makes of the exit code."""
        if self.outcome in (OK, SKIPPED):
            return 0
        return 1 if self.check or self.wrong else 3


class Log:
    """Every line on the screen and in a file at once, with the seconds since the start."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def __call__(self, line: str = "") -> None:
        """Write a line and flush it."""
        text = f"[{time.perf_counter() - BEGAN:6.1f}] {line}".rstrip()
        print(text, flush=True)
        print(text, file=self.file, flush=True)


def child(part: Part, scale: Scale, out: Path, pipe: int, limit: int) -> None:
    """The process of a part: what it prints goes into the pipe; shortly before its end it says where it stands."""
    os.dup2(pipe, 1)
    os.dup2(pipe, 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    faulthandler.dump_traceback_later(max(limit - 1, 0.1), exit=False, file=sys.stderr)
    code = run(part, scale, out)
    sys.stdout.flush()
    os._exit(code)  # what a broken device would hang in at exit is not waited for


def lines(pipe: int, process: multiprocessing.Process, deadline: float) -> Iterator[str]:
    """What comes through the pipe, line by line, until the process ends or its time is up."""
    rest = b""
    while True:
        alive = process.is_alive()
        ready, _, _ = select.select([pipe], [], [], 0.1 if alive else 0)
        text = os.read(pipe, 65536) if ready else b""
        *whole, rest = (rest + text).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
        if (not text and (ready or not alive)) or time.perf_counter() > deadline:
            break
    if rest:
        yield rest.decode(errors="replace")


def end(process: multiprocessing.Process) -> None:
    """Kill the process and what it started; a device that does not answer may hold it longer than is waited for."""
    with suppress(ProcessLookupError):  # it has ended, and left nobody behind
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join(5)


def run_part(part: Part, scale: Scale, out: Path, log: Log, limit: int) -> Outcome:
    """Run a part in a process of its own, at most `limit` seconds."""
    log(f"== {part.name} (at most {limit} s)")
    start = time.perf_counter()
    source, sink = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(part, scale, out, sink, limit))
    process.start()
    with suppress(ProcessLookupError):
        os.setpgid(process.pid or 0, process.pid or 0)  # a group of its own, by which all of it can be killed
    os.close(sink)
    said: dict[str, list[str]] = {OK: [], FAILED: [], SKIPPED: []}
    last = ""
    try:
        for line in lines(source, process, start + limit):
            log(line)
            last = line.strip() or last
            word, _, rest = line.partition("  ")
            if word in said:
                said[word].append(rest)
        process.join(max(0.0, start + limit - time.perf_counter()))
        late = process.is_alive()
    finally:
        end(process)
        os.close(source)
    outcome, detail = judge(said, process.exitcode, late, last)
    wrong = process.exitcode == 1
    return Outcome(part.name, outcome, detail, round(time.perf_counter() - start, 1), limit, part.check, wrong)


def judge(said: dict[str, list[str]], code: int | None, late: bool, last: str) -> tuple[str, str]:
    """(outcome, why) from what a part said, and how its process ended."""
    done = f"{len(said[OK])} done"
    skipped = "".join(f"; skipped {each}" for each in said[SKIPPED])
    if late or code is None:
        failed = f", before that failed: {said[FAILED][0]}" if said[FAILED] else ""
        return TIMED_OUT, done + failed
    if said[FAILED]:
        return "failed", f"{said[FAILED][0]} ({len(said[FAILED])} failed, {done})"
    if code < 0:
        return "failed", f"{signal.Signals(-code).name} ({done}); last line: {last}"
    if code:
        return "failed", f"exit code {code} ({done}); last line: {last}"
    if not said[OK]:
        return SKIPPED, "; ".join(said[SKIPPED]) or "nothing to do"
    return OK, done + skipped


def run_parts(
    parts: Sequence[Part], scale: Scale, out: Path, limits: dict[str, int], until: float = math.inf
) -> list[Outcome]:
    """Every part in turn, none beyond `until` of the clock; without a device the rest is left out.

    Log and summary are on disk as they come.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: list[Outcome] = []
    missing = ""
    with (out / LOG).open("a", encoding="utf-8") as file:
        log = Log(file)
        log(f"{' '.join(part.name for part in parts)}; rows, log and summary in {out}")
        for part in parts:
            limit = int(max(0, min(limits.get(part.name, part.seconds), until - time.perf_counter())))
            reason = missing or (NEEDS_GPU if part.gpu and scale.device == "cpu" else "")
            if reason:
                log(f"== {part.name} {SKIPPED}: {reason}")
                found.append(Outcome(part.name, SKIPPED, reason, 0.0, limit, part.check, False))
            elif limit < 1:
                log(f"== {part.name} not begun: no time is left")
                found.append(Outcome(part.name, TIMED_OUT, "no time was left", 0.0, limit, part.check, False))
            else:
                found.append(run_part(part, scale, out, log, limit))
            if part.name == "installed" and "no CUDA device" in found[-1].detail:
                missing = "no CUDA device"
            write(out, found)
        report(found, log)
    return found


def write(out: Path, found: list[Outcome]) -> None:
    """The outcomes so far, by rename."""
    temporary = out / f".{SUMMARY}"
    temporary.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n", encoding="utf-8")
    temporary.replace(out / SUMMARY)


def report(found: list[Outcome], log: Log) -> None:
    """One line per part, the worst first."""
    log("== summary")
    for each in sorted(found, key=lambda each: WORST_FIRST.index(each.outcome)):
        log(f"{each.outcome:10} {each.part:20} {each.seconds:6.1f} of {each.limit} s  {each.detail}")


def exit_code(found: list[Outcome]) -> int:
    """1 before 3 before 0."""
    codes = {each.code for each in found}
    return next((code for code in (1, 3) if code in codes), 0)


def ready_smoke() -> None:
    """Import once what several parts import, and let the interpreter do nothing over and over.

    On a GPU no part inherits more than torch: what has asked a driver before a fork cannot use it after.
    """
    for name in ("peft", "transformers"):
        with suppress(ImportError):
            importlib.import_module(name)
    with suppress(ImportError):
        import pytest

        from tests.interpreter import quicken

        quicken(pytest.MonkeyPatch())


def plan(parts: Sequence[Part]) -> str:
    """The parts, the seconds each may take, and their sum."""
    rows = [("imports", START, ""), *((p.name, p.seconds, "check" if p.check else "timing") for p in parts)]
    total = sum(seconds for _, seconds, _ in rows)
    return "\n".join([*(f"{name:20} {seconds:4} s  {kind}".rstrip() for name, seconds, kind in rows),
                      f"{'at most':20} {total:4} s"])  # fmt: skip


def everything(out: Path, options: list[str]) -> int:
    """Every check without a limit; then, unless one failed, every benchmark by pytest, at full size."""
    checks = [part for part in PARTS if part.check]
    found = run_parts(checks, Scale("cuda", False), out, {part.name: WITHOUT_LIMIT for part in checks})
    if code := exit_code(found):
        return code
    command = [sys.executable, "-m", "pytest", "-n", "0", "benchmarks", "-p", "no:cacheprovider"]
    command += ["--device", "cuda", "--benchmark", *options]
    return subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode


def main(arguments: list[str]) -> int:
    """Read the options; plan, run the chosen parts, or everything."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--plan", action="store_true", help="print the parts and the seconds each may take")
    parser.add_argument("--smoke", action="store_true", help="the same code on toys, on a CPU in Triton's interpreter")
    parser.add_argument("--parts", nargs="+", choices=NAMES, metavar="NAME", help=f"only these of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), metavar="FOLDER",
                        help="where rows, log and summary go (default: gpu-results)")  # fmt: skip
    parser.add_argument("--everything", action="store_true", help="every check, then every benchmark: takes hours")
    options, others = parser.parse_known_args(arguments)
    if others and not options.everything:
        parser.error(f"got {' '.join(others)}, which only --everything hands to pytest")
    parts = [part for part in PARTS if (part.name in options.parts if options.parts else part.quick)]
    if options.plan:
        print(plan(parts))
        return 0
    if options.everything:
        return everything(options.out, others)
    scale = Scale("cpu" if options.smoke else "cuda", options.smoke)
    if options.smoke and (reason := backends.interpreter_problem()):
        parser.error(f"--smoke: {reason}")
    if options.smoke:
        ready_smoke()
    limits = {part.name: SMOKE_SECONDS for part in parts} if options.smoke else {}
    until = math.inf if options.smoke or options.parts else BEGAN + TOTAL
    return exit_code(run_parts(parts, scale, options.out, limits, until))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
