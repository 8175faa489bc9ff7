"""`mora demo`: the whole job on built-in data and a built-in model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mora.cli.parser import Commands


def add(commands: Commands) -> None:
    """Declare the arguments."""
    about = "Adapt the built-in tiny CLIP on the built-in drawings with parts missing, next to baselines."
    parser = commands.add_parser(
        "demo",
        help="the whole job on built-in data and a built-in model, in minutes on a CPU",
        description=f"{about} Writes report.md, results.json, three plots and merged/ into a folder.",
    )
    parser.add_argument("--out", type=Path, default=None, metavar="FOLDER", help="where to write (default: demo)")
    parser.add_argument("--full", action="store_true", help="all methods and 10 seeds, instead of three methods and 2")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training part")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs per method (default: 2)")
    parser.add_argument("--rate", type=float, metavar="R", help="share of rows that lack a modality (default: 0.7)")
    parser.add_argument("--missing", metavar="KIND", help="what they lack: both, image or text (default: both)")
    parser.add_argument("--last-layers", type=int, metavar="N", help="adapted blocks per tower (default: 1)")
    parser.add_argument("--rank", type=int, metavar="R", help="rank of the adapters (default: 4)")
    parser.add_argument("--alpha", type=float, metavar="A", help="MoRA's alpha, instead of the one found on validation")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="which ones (default: frozen, lora, mora): docs/demo.md"
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="badges, subgroups (default: both)")
    parser.add_argument("--device", metavar="D", help="cpu (default) or cuda")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once, a CPU thread each (default: all cores)")
    parser.add_argument("--limit", type=int, metavar="N", help="use N rows of each part only, for a quick look")
    parser.add_argument(
        "--audio", action="store_true",
        help="three modalities instead, on recordings that --data brings: docs/audio.md",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="of --audio: the unpacked stamps, or a manifest with recordings"
    )
    parser.add_argument("--tower-epochs", type=int, metavar="N", help="of --audio: of the audio tower's own training")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, command: str) -> None:
    """Run `mora demo`; ValueError, ImportError or OSError for what the user can mend."""
    from mora.demo.methods import METHODS
    from mora.demo.run import demo
    from mora.demo.settings import FULL_SEEDS, Settings
    from mora.system.folders import remove_leftovers
    from mora.system.lock import FolderLock

    if options.audio or options.data is not None:
        run_audio(options, command)
        return
    names = set(Settings.__dataclass_fields__) & set(vars(options))
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.full:
        given = {"methods": tuple(METHODS), "seeds": FULL_SEEDS, **given}
    for name in {"methods", "tasks"} & set(given):
        given[name] = tuple(given[name])
    settings = Settings(**given)
    with FolderLock.beside(settings.out):
        remove_leftovers(settings.out)
        demo(settings, command)


def run_audio(options: argparse.Namespace, command: str) -> None:
    """Run `mora demo --audio`; errors as of `run`."""
    from mora.demo.audio import AudioSettings, demo
    from mora.demo.hearing import Recipe
    from mora.system.folders import remove_leftovers
    from mora.system.lock import FolderLock

    if not options.audio or options.data is None:
        raise ValueError("audio (--audio): got one of --audio and --data, expected both: --audio --data FOLDER")
    taken = {name: value for name, value in vars(options).items() if value not in (None, False)}
    own = ("data", "out", "methods", "seeds", "missing", "epochs", "limit", "jobs")
    others = ("full", "rate", "last_layers", "rank", "alpha", "tasks", "device")
    if foreign := [name for name in others if name in taken]:
        raise ValueError(f"{foreign[0]}: got it with --audio, expected some of {', '.join(own)}")
    given = {name: taken[name] for name in own if name in taken}
    if "methods" in given:
        given["methods"] = tuple(given["methods"])
    if options.tower_epochs is not None:
        given["recipe"] = Recipe(epochs=options.tower_epochs)
    settings = AudioSettings(**given)
    with FolderLock.beside(settings.out):
        remove_leftovers(settings.out)
        demo(settings, command)
