"""`mora sweep`: search over the options of `mora train`, on the validation split."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mora.cli import train
from mora.system.messages import shown

if TYPE_CHECKING:
    from mora.cli.parser import Commands

DESCRIPTION = """Train every combination of the values given, with every seed; the highest mean of validation wins, and
is tested once. An option of mora train with several values is searched; the same command goes on where it stopped."""
EPILOG = """values:
  --lr 1e-3 1e-2                  two values; with --search random or tpe also a range: --lr 1e-4..1e-1
  --rank 4 image=8 text=4         4, and 8 and 4 by tower: words with = belong together until a tower comes again
  --targets q,v q,k,v             two values; names and indices of one value have no blanks between them
examples:
  mora sweep --data openmoji --out sweeps/first --missing both:0.7 --epochs 5 --lr 1e-3 1e-2 --rank 4 8
  mora sweep --data shop.csv --out sweeps/shop --search tpe --trials 40 --prune --lr 1e-4..1e-1 --alpha 0.001..1
  mora evaluate --model sweeps/first/runs/003-seed1 --out results/first"""
# Drawn evenly on a logarithmic scale.
LOGARITHMIC = ("lr", "head_lr", "alpha", "eps", "weight_decay", "lora_scale")


class Lists:
    """A group of arguments that takes the options of `mora train` with a list of words each, read by `values_of`.

    Args:
        group: where they are declared.
        options: gets what `mora train` says of each that takes a list.
        only: the options that do; None means all, but for those that no sweep can search.
    """

    def __init__(self, group: Any, options: dict[str, dict[str, Any]], only: Sequence[str] | None = None) -> None:
        self.group, self.options, self.only = group, options, only

    def add_argument(self, flag: str, **settings: Any) -> None:
        """An option as `mora train` declares it; flags that take no value stay as they are."""
        name = flag.removeprefix("--").replace("-", "_")
        if name == "seed":
            return
        takes = name != "preset" if self.only is None else name in self.only
        if settings.get("action") != "store_true" and takes:
            self.options[name] = dict(settings)
            settings = {**settings, "type": str, "nargs": "+"}
        self.group.add_argument(flag, **settings)


def add(commands: Commands) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "sweep",
        help="search over the options of mora train, by validation",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="D",
        help="openmoji (or -badges), a data folder, or a CSV / JSONL / Parquet",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where to write; a run folder for every cell")
    group = parser.add_argument_group("search")
    group.add_argument("--seeds", type=int, nargs="+", metavar="N", help="of every setting (default: 0 1 2)")
    group.add_argument("--search", metavar="S", help="grid (default), random, or tpe (needs optuna)")
    group.add_argument("--trials", type=int, metavar="N", help="settings that random and tpe try")
    group.add_argument("--search-seed", type=int, metavar="N", help="of what random and tpe draw (default: 0)")
    group.add_argument("--prune", action="store_true", help="with tpe: end cells below the median of earlier settings")
    group.add_argument("--no-test", action="store_false", dest="test", help="leave the test split closed")
    group.add_argument("--jobs", type=int, metavar="N", help="cells at once, a process each (default: 1)")
    options: dict[str, dict[str, Any]] = {}
    train.add_missing(Lists(parser, options))
    train.add_machine(Lists(parser.add_argument_group("data and machine"), options, only=("token_policy",)))
    train.add_model(Lists(parser.add_argument_group("model"), options))
    train.add_recipe(Lists(parser.add_argument_group("recipe"), options))
    parser.set_defaults(run=run, options=options)


def run(options: argparse.Namespace, command: str) -> None:
    """Run `mora sweep`; ValueError, ImportError or OSError for what the user can mend."""
    from mora.sweeping.sweep import sweep

    given = {name: value for name, value in vars(options).items() if name not in train.NOT_FIELDS}
    declared = given.pop("options")
    for name, settings in declared.items():
        if name in given:
            values = values_of(name, given[name], settings)
            given[name] = values[0] if len(values) == 1 and not is_range(values[0]) else listed(name, values)
    sweep(**given)


def listed(name: str, values: list[Any]) -> Any:
    """What is searched of a field: a list, or the only range."""
    if any(map(is_range, values)):
        if len(values) > 1:
            raise ValueError(f"{name}: got a range and {len(values) - 1} more values, expected one range or a list")
        return values[0]
    return values


def is_range(value: Any) -> bool:
    """Whether a value is a `Range`, which is imported where there is one only."""
    return type(value).__name__ == "Range"


def values_of(name: str, words: Sequence[str], settings: dict[str, Any]) -> list[Any]:
    """The values that some words say, each as `mora train` reads it; ValueError for words it would not take."""
    width = settings.get("nargs")
    if isinstance(width, int):
        if len(words) % width:
            raise ValueError(f"{name}: got {len(words)} words, expected {width} for each value")
        groups = [list(words[at : at + width]) for at in range(0, len(words), width)]
    elif width == "+":
        groups = grouped(words)
    else:
        groups = [[word] for word in words]
    return [value_of(name, group, settings.get("type", str), width) for group in groups]


def value_of(name: str, group: list[str], kind: Callable[[str], Any], width: Any) -> Any:
    """One value of one group of words."""
    if len(group) == 1 and ".." in group[0] and (ends := ends_of(name, group[0], kind)) is not None:
        return ends
    if name == "adapt":
        return train.by_tower(name, group, "mora or frozen")
    if width == "+":
        return train.one_or_each(name, group)
    try:
        read = tuple(kind(word) for word in group)
    except ValueError:
        raise ValueError(f"{name}: got {shown(' '.join(group))}, expected {kind.__name__} values") from None
    return read if isinstance(width, int) else read[0]


def ends_of(name: str, word: str, kind: Callable[[str], Any]) -> Any:
    """The range that "1e-4..1e-1" says; None for a field that has no numbers."""
    kind = train.READ[name][0] if name in train.READ else kind
    if kind not in (int, float):
        return None
    from mora.sweeping.space import Range

    low, _, high = word.partition("..")
    try:
        return Range(kind(low), kind(high), log=name in LOGARITHMIC)
    except ValueError as error:
        said = str(error).removeprefix("range: ") if str(error).startswith("range: ") else f"got {shown(word)}"
        got = said.partition(", expected")[0]
        raise ValueError(f"{name}: {got}, expected LOW..HIGH, two numbers that rise") from None


def grouped(words: Sequence[str]) -> list[list[str]]:
    """Words of one value each: those by tower, `image=8 text=4`, belong together until a tower comes again.

    Words in one argument, "image=8 text=4", are one value in any case.
    """
    groups: list[list[str]] = []
    towers: set[str] | None = None  # of the value that goes on
    for argument in words:
        parts = argument.split()
        tower = parts[0].partition("=")[0] if len(parts) == 1 and "=" in argument else None
        if tower is None or towers is None or tower in towers:
            groups.append(parts)
            towers = None if tower is None else {tower}
        else:
            groups[-1] += parts
            towers.add(tower)
    return groups
