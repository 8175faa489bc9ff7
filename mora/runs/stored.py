"""What a run folder's JSON must hold before anything in it is used: the folder may be somebody else's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mora.adapters.prompts import MOST_PROMPTS, PromptSize
from mora.config import MoraConfig
from mora.data.tables import Missing
from mora.heads import KINDS as HEADS
from mora.heads import MISSING_EMBEDDINGS
from mora.metrics import KINDS, RECALL
from mora.runs.backbone import TOKEN_POLICIES
from mora.runs.methods import METHODS
from mora.runs.objectives import OBJECTIVES
from mora.system.checks import is_whole
from mora.system.messages import shown

SHA256 = re.compile(r"[0-9a-f]{64}")
MOST_CLASSES, LONGEST, HIGHEST = 1 << 20, 1 << 16, 1e30


class Rule(NamedTuple):
    """A field by its dotted name, what it must fulfil, that in words, and whether it may be absent."""

    name: str
    right: Callable[[Any], bool]
    wanted: str
    optional: bool = False


def is_text(value: Any) -> bool:
    """Whether `value` is a string of a length that names have, without NUL."""
    return isinstance(value, str) and len(value) <= LONGEST and "\0" not in value


def is_number(value: Any) -> bool:
    """Whether `value` is a number that can be reckoned with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < HIGHEST


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number that a 64-bit computer counts to."""
    return is_whole(value) and 0 <= value < 1 << 63


def each(right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is an object of which every value is right."""
    return lambda value: isinstance(value, dict) and all(right(inner) for inner in value.values())


def is_classes(value: Any) -> bool:
    """Whether `value` lists distinct names."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= MOST_CLASSES
        and all(is_text(name) for name in value)
        and len(set(value)) == len(value)
    )


def is_table(value: Any) -> bool:
    """Whether `value` describes a missing table."""
    if not isinstance(value, dict) or not is_text(value.get("missing")):
        return False
    try:
        Missing.parse(value["missing"], strict=False)
    except ValueError:
        return False
    return value.get("seed") is None or is_count(value["seed"])


def is_figures(value: Any) -> bool:
    """Whether `value` holds metrics by name."""
    return each(is_number)(value)


def is_prompt_size(value: Any) -> bool:
    """Whether `value` says how many prompts there are and how deep."""
    return (
        isinstance(value, dict)
        and {*value} == {*PromptSize._fields}
        and all(is_whole(number) and 1 <= number <= MOST_PROMPTS for number in value.values())
    )


OPTIONS = {
    "name": lambda value: value is None or is_text(value),
    "metric": lambda value: value in (None, *KINDS, RECALL),
    "seed": is_count,
    "extra_columns": lambda value: isinstance(value, bool),
}
RULES = (
    Rule("data.source", is_text, "a path or a name"),
    Rule("data.name", is_text, "a name"),
    Rule("data.classes", is_classes, f"1 to {MOST_CLASSES:,} different names"),
    Rule("data.metric", lambda value: value in (*KINDS, RECALL), f"one of {', '.join((*KINDS, RECALL))}"),
    Rule("data.multi_label", lambda value: isinstance(value, bool), "true or false"),
    Rule("data.rows", each(is_count), "numbers of rows by split", True),
    Rule("data.fingerprints", each(is_text), "fingerprints by split", True),
    Rule(
        "data.options",
        lambda value: isinstance(value, dict) and all(n in OPTIONS and OPTIONS[n](v) for n, v in value.items()),
        ", ".join(OPTIONS),
        True,
    ),
    Rule("backbone.name", is_text, "a name"),
    Rule("backbone.pretrained", lambda value: value is None or is_text(value), "a tag, a file or null"),
    Rule("backbone.sha256", lambda value: is_text(value) and bool(SHA256.fullmatch(value)), "a SHA-256"),
    Rule("method", lambda value: value in METHODS, f"one of {', '.join(METHODS)}"),
    Rule("token_policy", lambda value: value in TOKEN_POLICIES, f"one of {', '.join(TOKEN_POLICIES)}"),
    Rule("lora_scale", lambda value: is_number(value) and value > 0, "a number above 0"),
    Rule("head", lambda value: value in HEADS, f"one of {', '.join(HEADS)}", True),
    Rule("objective", lambda value: value in OBJECTIVES, f"one of {', '.join(OBJECTIVES)}", True),
    Rule(
        "missing_embedding",
        lambda value: value in MISSING_EMBEDDINGS,
        f"one of {', '.join(MISSING_EMBEDDINGS)}",
        True,
    ),
    Rule("prompts", is_prompt_size, f"length and depth, whole numbers from 1 to {MOST_PROMPTS:,}", True),
    Rule("tables", each(is_table), "missing tables by split", True),
    Rule("train", lambda value: isinstance(value, dict), "an object", True),
    Rule("versions", each(is_text), "versions by package", True),
    Rule("processes", is_count, "a whole number", True),
)
RESULT_RULES = (
    Rule("epoch", is_count, "a whole number", True),
    Rule("validation", is_figures, "numbers by name", True),
    Rule("patterns", each(each(is_number)), "figures by pattern", True),
    Rule("test", lambda value: value is None or is_figures(value), "numbers by name", True),
)


def check_config(where: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError that names the first field of config.json that is absent or wrong."""
    check(where, config, RULES)
    adapters = config.get("mora")
    if not isinstance(adapters, dict):
        raise ValueError(f"{where}: 'mora' is {shown(adapters)}, expected an object")
    try:
        MoraConfig.from_dict(adapters)
    except (TypeError, OverflowError, ValueError) as error:
        raise ValueError(f"{where}: mora.{cut(str(error))}") from error


def check_result(where: str, result: Mapping[str, Any]) -> None:
    """Raise ValueError that names the first field of result.json that is wrong."""
    check(where, result, RESULT_RULES)


def check(where: str, content: Mapping[str, Any], rules: tuple[Rule, ...]) -> None:
    """Raise ValueError that names the first field that breaks its rule."""
    for rule in rules:
        *path, last = rule.name.split(".")
        place: Any = content
        for depth, part in enumerate(path):
            place = place.get(part)
            if not isinstance(place, dict):
                name = ".".join(path[: depth + 1])
                raise ValueError(f"{where}: {name!r} is {shown(place)}, expected an object")
        if last not in place and rule.optional:
            continue
        value = place.get(last)
        try:
            right = last in place and rule.right(value)
        except TypeError:  # a list is in no tuple of names, an object is hashed by nothing
            right = False
        if not right:
            got = shown(value) if last in place else "absent"
            raise ValueError(f"{where}: {rule.name!r} is {got}, expected {rule.wanted}")


def cut(text: str, most: int = 200) -> str:
    """A text, not at any length."""
    return text if len(text) <= most else f"{text[:most]} ..."
