"""`mora data`: builds and checks data sets, draws missing tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mora.cli.parser import Parser, finish

if TYPE_CHECKING:
    from mora.cli.parser import Commands

SPLITS = ("train", "validation", "test")
SOURCE = (
    "openmoji, openmoji-badges, a folder in the official layout or saved by datasets, or a CSV / JSONL / Parquet "
    "manifest"
)
MISSING = "what to take away: KIND:RATE with KIND text, image or both; RATE counts what is missing"


def add(commands: Commands) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "data",
        help="build and check data sets, draw missing tables",
        description="Build a published data set, check any data set, or draw the missing tables of one.",
    )
    actions = parser.add_subparsers(dest="action", metavar="action", title="actions", parser_class=Parser)
    _add_build(actions)
    _add_check(actions)
    _add_table(actions)
    finish(parser, actions)


def _add_build(actions: Commands) -> None:
    parser = actions.add_parser(
        "build",
        help="a published data set, or Tux Paint's stamps, from its raw folder",
        description="Write {train,val,test}.arrow and dataset.json; every image is decoded, every broken file named. "
        "Run again, it keeps what is done. Of stamps it writes stamps.csv: picture, text, recording.",
    )
    parser.add_argument("name", choices=("mmimdb", "food101", "hateful_memes", "stamps"), help="which data set")
    parser.add_argument(
        "--raw", "--from", type=Path, required=True, metavar="FOLDER", help="the raw folder, as distributed"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write")
    parser.add_argument("--skip-broken", action="store_true", help="leave out missing and broken files, and list them")
    parser.add_argument(
        "--accept-counts", action="store_true", help="build though the counts are not the published ones"
    )
    parser.add_argument("--languages", nargs="+", metavar="L", help="of stamps: recordings in these only, fr es")
    parser.add_argument("--seed", type=int, metavar="N", help="of stamps: of the division into parts (default: 0)")
    parser.set_defaults(run=_build)


def _add_check(actions: Commands) -> None:
    parser = actions.add_parser(
        "check",
        help="what a data set holds, every image that cannot be read, and what training would refuse",
        description="Open every split and decode every image; print counts by split and class, images that cannot be "
        "read or are of nearly one colour, and what mora train refuses. Exit code 2 if it would.",
    )
    _add_source(parser)
    parser.add_argument(
        "--tables", type=Path, nargs="+", default=[], metavar="FILE", help="missing tables to check too"
    )
    parser.add_argument("--metric", metavar="M", help="accuracy, macro_f1 or auroc (default: by the data set)")
    parser.add_argument(
        "--splits", nargs="+", metavar="S", choices=(*SPLITS, "all"),
        help="only these, for data that is not to be trained on: train, validation, test or all",
    )  # fmt: skip
    parser.set_defaults(run=_check)


def _add_table(actions: Commands) -> None:
    parser = actions.add_parser(
        "table",
        help="draw missing tables, a file per split",
        description="Draw a missing table for every split. Its file knows the data it was drawn for, its rate, kind, "
        "share and seed, so that it cannot be used for anything else.",
    )
    _add_source(parser)
    parser.add_argument(
        "--missing", required=True, metavar="KIND:RATE",
        help=f"{MISSING}; KIND:RATE:SHARE for another share of images in both; train=both:0.7,test=text:0.9 by split",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=42, metavar="N",
        help="of the draw; 1000 is added for validation, 2000 for test (default: 42, as in mora train)",
    )  # fmt: skip
    parser.add_argument("--on-broken", default="raise", metavar="B", help="unreadable images: raise (default) or skip")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write")
    parser.set_defaults(run=_table)


def _add_source(parser: Parser) -> None:
    parser.add_argument("source", metavar="D", help=SOURCE)
    parser.add_argument(
        "--data-name",
        metavar="N",
        help="mmimdb, food101 or hateful_memes, where a folder in the official layout does not tell",
    )
    parser.add_argument(
        "--split-seed", type=int, default=0, metavar="N", help="how a manifest without splits is split (default: 0)"
    )
    parser.add_argument("--extra-columns", action="store_true", help="let columns of a manifest be that mean nothing")


def _source(options: argparse.Namespace) -> dict[str, Any]:
    return {"name": options.data_name, "seed": options.split_seed, "extra_columns": options.extra_columns}


def _build(options: argparse.Namespace, command: str) -> None:
    from mora.data.builders import build, build_stamps
    from mora.system.folders import remove_leftovers
    from mora.system.lock import FolderLock

    stamps = options.name == "stamps"
    for name, meant in (("languages", stamps), ("seed", stamps), ("accept_counts", not stamps)):
        if getattr(options, name) and not meant:
            raise ValueError(f"--{name.replace('_', '-')}: got it with {options.name}, where it has no meaning")
    with FolderLock.beside(options.out):
        remove_leftovers(options.out)
        if stamps:
            build_stamps(
                options.raw,
                options.out,
                languages=options.languages,
                seed=options.seed or 0,
                skip_broken=options.skip_broken,
            )
            return
        build(
            options.name,
            options.raw,
            options.out,
            skip_broken=options.skip_broken,
            accept_counts=options.accept_counts,
        )


def _check(options: argparse.Namespace, command: str) -> None:
    from mora.data.check import check

    splits = None if options.splits is None else tuple(dict.fromkeys(options.splits))
    found = check(options.source, splits=splits, metric=options.metric, tables=options.tables, **_source(options))
    print(found)
    broken = f"{len(found.broken):,} images cannot be read; they are listed above" if found.broken else ""
    if reasons := [*found.refused, *([broken] if broken else [])]:
        raise ValueError(f"{options.source}: {'; '.join(reasons)}")


def _table(options: argparse.Namespace, command: str) -> None:
    from mora.data import draw_table, open_dataset, parse_missing, save_table, splits_of, table_seed

    missing = parse_missing(options.missing)
    for split in splits_of(options.source, extra_columns=options.extra_columns):
        if missing[split].rate == 0:
            print(f"{split}: nothing is missing, so it needs no table")
            continue
        dataset = open_dataset(options.source, split, on_broken=options.on_broken, **_source(options))
        table = draw_table(dataset, missing[split], table_seed(options.seed, split))
        counts = ", ".join(f"{count:,} {name}" for name, count in table.counts.items())
        print(f"{save_table(table, options.out)}: {counts}")
