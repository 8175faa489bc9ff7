"""`mora demo --audio`: the audio tower trained, then frozen head, LoRA and MoRA on rows that lack modalities."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mora.data.builders.stamps import MANIFEST, build_stamps
from mora.data.open import open_dataset
from mora.data.policies import Missing
from mora.data.tables import table_seed
from mora.demo import subsets
from mora.demo.hearing import Recipe
from mora.demo.methods import LABELS
from mora.demo.recordings import tower
from mora.demo.settings import Settings
from mora.evaluation.grid import Result, cells, grid_of
from mora.runs.backbone import TINY_AUDIO
from mora.runs.run import load_run
from mora.savings import PrefixCache, sample_parts
from mora.sweeping.workers import LostProcessError, each
from mora.system.folders import write_together
from mora.system.machine import cores, versions
from mora.training.batches import Inputs
from mora.training.trainer import Trainer

TASK = "badges"  # whose learning rates and scales are taken as they are: nothing was searched here
CURVE_RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # shares of all inputs; above 2 of 3 some row would have none
ROWS = "rows"


@dataclass(frozen=True)
class AudioSettings:
    """The arguments of `mora demo --audio`.

    Attributes:
        data: the unpacked stamps, or a manifest with image, text and audio.
        out: folder of the results.
        methods: some of the demo's.
        seeds: runs of each.
        missing: what training and validation rows lack: under any:0.3 a row keeps any of its modalities but none, and
            about 70 % of the rows are incomplete.
        epochs, batch: of these runs.
        limit: rows of the training and validation part that are used; the test part is whole.
        jobs: runs at once, each on one CPU thread.
        recipe: how the tower is trained.
    """

    data: Path
    out: Path = Path("demo")
    methods: tuple[str, ...] = ("frozen", "lora", "mora")
    seeds: int = 5
    missing: str = "any:0.3"
    epochs: int = 6
    batch: int = 32
    limit: int | None = 520
    jobs: int = field(default_factory=cores)
    recipe: Recipe = field(default_factory=Recipe)

    def base(self) -> Settings:
        """The recipe of the demo of two modalities, which these runs share."""
        return Settings(self.out, self.epochs, self.seeds, methods=self.methods, batch=self.batch, limit=self.limit)


class Job(NamedTuple):
    """One run to do."""

    settings: AudioSettings
    manifest: str
    weights: str
    method: str
    seed: int


class Ran(NamedTuple):
    """What a run scored on the test part, and how long its training took."""

    method: str
    seed: int
    parameters: int
    seconds: float
    results: list[Result]


def demo(settings: AudioSettings, command: str = "mora demo --audio", report: Callable[[str], None] = print) -> Any:
    """Train the tower, then every method with every seed; print the table and write the files. Returns the rows.

    Raises ValueError for settings or data that do not fit, ImportError for a package that is absent.
    """
    settings.base()  # checks
    Missing.parse(settings.missing)
    settings.out.mkdir(parents=True, exist_ok=True)
    manifest = manifest_of(settings, report)
    weights, figures = tower(manifest, settings.recipe, report)
    jobs = [
        Job(settings, str(manifest), str(weights), method, seed)
        for seed in range(settings.seeds)
        for method in reversed(settings.methods)
    ]
    runs: list[Ran] = []
    with tempfile.TemporaryDirectory(prefix="mora-demo-") as place:
        for _, found in each(partial(train, place=Path(place)), jobs, settings.jobs, 1):
            if isinstance(found, LostProcessError):
                raise found
            runs.append(found)
            report(f"{LABELS[found.method]}, seed {found.seed}: {found.seconds:.0f} s")
    runs.sort(key=lambda run: (settings.methods.index(run.method), run.seed))
    rows = as_rows(settings, command, figures, runs)
    write(settings.out, rows)
    report(subsets.table(rows).markdown())
    report(f"Written: {settings.out / 'report.md'}, audio.json, audio.png")
    return rows


def manifest_of(settings: AudioSettings, report: Callable[[str], None]) -> Path:
    """The manifest that was given, or one built from the stamps into the folder of the results."""
    if settings.data.is_file():
        return settings.data
    built = settings.out / "stamps" / MANIFEST
    return built if built.is_file() else build_stamps(settings.data, built.parent, report=report)


def train(job: Job, place: Path) -> Ran:
    """One training and its test."""
    from rich.console import Console

    settings, folder = job.settings, place / f"{job.method}-seed{job.seed}"
    config = replace(
        settings.base().config(TASK, job.method, job.seed, folder, place / ROWS),
        data=job.manifest,
        backbone=TINY_AUDIO,
        pretrained=job.weights,
        missing={"train": settings.missing, "validation": settings.missing},
    )
    trainer = Trainer(config, console=Console(quiet=True))
    result = trainer.fit()
    head = sum(parameter.numel() for parameter in trainer.model.own_parameters().values())
    scored = score(job, folder, place / ROWS)
    return Ran(job.method, job.seed, result.parameters - head, result.seconds, scored)


def score(job: Job, folder: Path, rows: Path) -> list[Result]:
    """The best epoch of a run on the test part: every subset that can be there, and shares of all inputs missing."""
    run, dataset = load_run(folder), open_dataset(job.manifest, "test")
    inputs = Inputs(dataset, dataset.present(), run.preparing)
    known = sample_parts(dataset, run.preprocess, run.tokenize, run.preparing.others)
    cache = PrefixCache(run.model, inputs, folder=rows, parts=known, present=inputs.present.by_modality())
    cache.fill()
    conditions = [*grid_of(dataset.modalities), *(Missing("any", rate) for rate in CURVE_RATES)]
    seeds = (table_seed(job.seed, "test"),)
    return cells(run, dataset, conditions, seeds, label=LABELS[job.method], cache=cache)


def as_rows(settings: AudioSettings, command: str, figures: dict[str, Any], runs: Sequence[Ran]) -> dict[str, Any]:
    """Everything that tables and plot are made of, as JSON types."""
    said = {**asdict(settings), "data": settings.data.name, "out": str(settings.out)}
    return {
        "command": command,
        "versions": versions(),
        "settings": said,
        "tower": {name: value for name, value in figures.items() if name != "key"},
        "runs": [
            {
                "method": run.method,
                "seed": run.seed,
                "parameters": run.parameters,
                "seconds": round(run.seconds, 1),
                "results": [
                    {
                        "kind": one.kind,
                        "rate": one.rate,
                        "rows": one.rows,
                        "figures": {name: round(value, 6) for name, value in one.figures.items()},
                    }
                    for one in run.results
                ],
            }
            for run in runs
        ],
    }


def write(out: Path, rows: dict[str, Any]) -> None:
    """audio.json, audio.png and report.md, together."""
    contents = {
        "audio.json": (json.dumps(rows, indent=1) + "\n").encode(),
        "audio.png": subsets.draw(rows),
        "report.md": subsets.markdown(rows).encode(),
    }
    write_together(out, contents)
