"""`mora train`: adapt a CLIP to a data set in which images or texts are missing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mora.system.messages import shown

if TYPE_CHECKING:
    from mora.cli.parser import Commands

DESCRIPTION = """Adapt a CLIP to a data set in which images or texts are missing, keep the best validation epoch and
test it once. On several GPUs or machines: accelerate launch -m mora.cli train ..., or torchrun likewise."""
NOT_FIELDS = ("run", "command", "traceback")
EPILOG = """examples:
  mora train --data openmoji --out runs/first --missing both:0.7 --epochs 5
  mora train --data datasets/Food101 --out runs/food --backbone ViT-B-16-quickgelu --pretrained openai \\
      --preset food101 --missing both:0.7 --precision bf16
  mora train --data products.csv --out runs/products --missing train=both:0.5,validation=both:0.5
  mora train ... --resume"""


def add(commands: Commands) -> None:
    """Declare the arguments."""
    parser = commands.add_parser(
        "train",
        help="adapt a CLIP to a data set with missing images or texts",
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
    parser.add_argument("--out", required=True, metavar="RUN", help="run folder to make")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in RUN")
    add_missing(parser)
    add_model(parser.add_argument_group("model"))
    add_recipe(parser.add_argument_group("recipe"))
    add_machine(parser.add_argument_group("data and machine"))
    parser.set_defaults(run=run)


def add_missing(group: Any) -> None:
    """What is taken away."""
    group.add_argument(
        "--missing",
        metavar="M",
        help="simulated absence: both:0.7, text:R, image:R (R: the share that is MISSING), a table's file, or several: "
        "train=both:0.7,validation=both:0.7,test=image:0.5 (default: none)",
    )


def add_model(group: Any) -> None:
    """What is adapted, and how."""
    group.add_argument("--backbone", metavar="NAME", help="tiny (built in, default) or a name of open_clip")
    group.add_argument("--pretrained", metavar="TAG", help="open_clip's tag (openai ...) or a file of weights")
    group.add_argument("--preset", metavar="P", help="published recipe: mmimdb, food101 or hateful_memes")
    group.add_argument(
        "--method",
        metavar="M",
        help="mora (default), mora-no-gram, mora-fixed-gram, mora-no-specific, lora, dora, bitfit, last-block, mmp, "
        "dcp, linear or zero-shot",
    )
    group.add_argument(
        "--objective",
        metavar="O",
        help="classification (default), or contrastive: image-text pairs, no labels, no head: docs/retrieval.md",
    )
    group.add_argument("--head", metavar="H", help="linear (default), pattern-bias or prototypes: docs/training.md")
    group.add_argument(
        "--missing-embedding",
        metavar="E",
        help="in the place of a missing one: that of a white image or an empty text (substitute, default), learned or "
        "zero",
    )
    group.add_argument(
        "--rank", nargs="+", metavar="R", help="rank of the adapters, 4 (default), or by tower: image=8 text=4"
    )
    group.add_argument("--common-rank", type=int, metavar="R", help="rank of the shared factors (default: --rank)")
    group.add_argument(
        "--alpha",
        nargs="+",
        metavar="A",
        help="MoRA's factor of both updates, one or by tower (default: docs/training.md)",
    )
    group.add_argument("--dropout", type=float, metavar="P", help="in adapted projections (default: 0.1)")
    group.add_argument(
        "--targets", nargs="+", metavar="T", help="out of q,k,v,out,fc1,fc2 (default: q,v), or image=q,v text=q,v,fc1"
    )
    group.add_argument("--last-layers", nargs="+", metavar="N", help="adapted blocks: 2 (default), or by tower")
    group.add_argument("--first-layer", type=int, metavar="N", help="adapt from this block on instead")
    group.add_argument(
        "--layers", nargs="+", metavar="L", help="adapt these blocks instead: 10,11 or image=22,23 text=10,11"
    )
    group.add_argument(
        "--pair-layers", metavar="P", help="blocks of towers of unequal depth: top (default), bottom or proportional"
    )
    group.add_argument(
        "--adapt", nargs="+", metavar="M", help="what happens to each tower: image=mora text=frozen (default: all mora)"
    )
    group.add_argument("--init", metavar="I", help="identity (default; starts as the pretrained model) or official")
    group.add_argument("--gram", metavar="G", help="of more than two towers: mean (default) or sum")
    group.add_argument("--backend", metavar="B", help="auto (default), reference, torch or triton")
    group.add_argument("--lora-scale", type=float, metavar="S", help="lora_alpha / rank (default: 1)")
    group.add_argument(
        "--prompt-length", type=int, metavar="N", help="prompts before a sample, mmp and dcp (default: 36)"
    )
    group.add_argument(
        "--prompt-depth", type=int, metavar="N", help="first blocks with prompts of their own (default: 6)"
    )


def add_recipe(group: Any) -> None:
    """How it is trained."""
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the training split (default: 20)")
    group.add_argument("--batch", type=int, metavar="N", help="rows per forward pass and process (default: 64)")
    group.add_argument("--accumulation", type=int, metavar="N", help="forward passes per step (default: 1)")
    group.add_argument(
        "--lr", type=float, metavar="R", help="peak learning rate of what is adapted (default: by method)"
    )
    group.add_argument("--head-lr", type=float, metavar="R", help="peak learning rate of the head (default: 0.01)")
    group.add_argument("--betas", type=float, nargs=2, metavar="B", help="of AdamW (default: 0.9 0.98)")
    group.add_argument("--eps", type=float, metavar="E", help="of AdamW (default: 1e-8)")
    group.add_argument("--weight-decay", type=float, metavar="W", help="of AdamW (default: 0.02)")
    group.add_argument("--warmup", type=float, metavar="S", help="share of steps with a rising rate (default: 0.1)")
    group.add_argument("--precision", metavar="P", help="fp32 (default), bf16 or fp16")
    group.add_argument("--seed", type=int, metavar="N", help="of everything random (default: 42)")


def add_machine(group: Any) -> None:
    """What it reads, where it runs, what it writes."""
    group.add_argument("--token-policy", metavar="P", help="official, plain or auto (default): see docs/training.md")
    group.add_argument("--on-broken", metavar="B", help="unreadable images: raise (default) or skip")
    group.add_argument("--tables", metavar="F", help="folder of missing tables to read instead of drawing them")
    group.add_argument("--patches", type=float, metavar="S", help="share of every image that goes black (default: 0)")
    group.add_argument("--word-drop", type=float, metavar="S", help="share of words that are dropped (default: 0)")
    group.add_argument(
        "--data-name", metavar="N", help="mmimdb, food101 or hateful_memes, where the folder does not tell"
    )
    group.add_argument("--metric", metavar="M", help="accuracy, macro_f1 or auroc (default: by the data set)")
    group.add_argument(
        "--split-seed", type=int, metavar="N", help="how a manifest without splits is split (default: 0)"
    )
    group.add_argument(
        "--extra-columns", action="store_true", help="let columns of a manifest be that mean nothing here"
    )
    group.add_argument("--limit", type=int, metavar="N", help="use N rows of each split, for a quick look")
    group.add_argument("--device", metavar="D", help="auto (default), cpu or cuda")
    group.add_argument("--workers", type=int, metavar="N", help="processes that read images")
    group.add_argument("--tracker", metavar="T", help="tensorboard, or another name that accelerate knows")
    group.add_argument(
        "--checkpoint-minutes", type=float, metavar="M", help="between checkpoints within an epoch (default: 5)"
    )
    group.add_argument(
        "--savings",
        metavar="S",
        help="all (default), none, or some of pooled,missing,trimmed,lean (docs/savings.md)",
    )
    group.add_argument("--cache", metavar="C", help="rows past the frozen blocks: auto (default), memory, disk or off")
    group.add_argument("--cache-dtype", metavar="T", help="of these rows: exact (default), float16 or bfloat16")
    group.add_argument("--cache-gb", type=float, metavar="G", help="the most they take (default: half of what is free)")
    group.add_argument("--cache-folder", metavar="F", help="where they are kept on disk, for other runs too")
    group.add_argument("--log-every", type=int, metavar="N", help="steps between lines of metrics.jsonl (default: 10)")


def run(options: argparse.Namespace, command: str) -> None:
    """Run `mora train`; ValueError, ImportError or OSError for what the user can mend."""
    from mora.training import train

    given = {name: value for name, value in vars(options).items() if name not in NOT_FIELDS}
    for name in ("rank", "alpha", "targets", "last_layers", "layers"):
        if name in given:
            given[name] = one_or_each(name, given[name])
    if "adapt" in given:
        given["adapt"] = by_tower("adapt", given["adapt"], "mora or frozen")
    if "betas" in given:
        given["betas"] = tuple(given["betas"])
    train(**given)


def by_tower(name: str, given: list[str], expected: str) -> dict[str, str]:
    """What `--name image=A text=B` says of each tower; ValueError for another form."""
    found = {}
    for one in given:
        modality, _, value = one.partition("=")
        if not modality or not value or modality in found:
            raise ValueError(f"{name}: got {shown(one)}, expected TOWER=VALUE once for each, VALUE being {expected}")
        found[modality] = value
    return found


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(","))


def indices(text: str) -> tuple[int, ...]:
    """Block indices separated by commas; ValueError for others."""
    return tuple(int(number) for number in text.split(","))


# How the value of an option is read, for all towers or for one, and what it is called.
READ: dict[str, tuple[Callable[[str], Any], str]] = {
    "rank": (int, "an int"),
    "alpha": (float, "a number"),
    "last_layers": (int, "an int"),
    "targets": (names, "targets separated by commas"),
    "layers": (indices, "block indices separated by commas"),
}


def one_or_each(name: str, given: list[str]) -> Any:
    """What `--rank 4` says for all towers, or `--rank image=8 text=4` of each; ValueError for another form."""
    read, expected = READ[name]

    def value(text: str) -> Any:
        try:
            return read(text)
        except ValueError:
            raise ValueError(f"{name}: got {shown(text)}, expected {expected}") from None

    if len(given) == 1 and "=" not in given[0]:
        return value(given[0])
    return {modality: value(text) for modality, text in by_tower(name, given, expected).items()}
