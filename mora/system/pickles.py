"""What a pickle of torch.save would build, reckoned without building it: opcodes are read and nothing is run.

`torch.load(weights_only=True)` runs no code, but hashes a key as often as the file refers to its parts: a tuple of a
tuple of ..., each named twice, takes 2^depth steps.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from dataclasses import dataclass
from typing import Any

ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
DEEPEST = 8  # tuples in tuples; torch.save nests arguments, storages and sizes, three or four
MOST_STEPS = 1 << 20  # opcodes, and parts of what the memo is asked for; a checkpoint of a large CLIP takes 20,000
LEGACY = 5  # pickles at the start of a file of before zip archives: magic, protocol, system, content, keys of storages
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": -1}  # items, -1 all since the mark
ADDED = {"APPEND": 1, "SETITEM": 2, "BUILD": 1, "APPENDS": -1, "SETITEMS": -1}  # items that go into what lies below


@dataclass
class Value:
    """A value on the unpickler's stack: its parts, each counted as often as a walk meets it, and tuples in tuples."""

    parts: int = 1
    depth: int = 0


def refuse_tangled(data: bytes) -> None:
    """Raise ValueError when a file of `torch.save` holds tuples nested too deep, or too many values in all.

    `data` is either of its formats; damage raises whatever pickletools and zipfile raise.
    """
    if data.startswith(ZIP_START):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                if entry.filename.lower().endswith(".pkl"):  # torch's reader of archives takes either case
                    check_pickle(io.BytesIO(archive.read(entry)))
    elif data.startswith(PICKLE_START):
        stream = io.BytesIO(data)
        for _ in range(LEGACY):
            check_pickle(stream)
    else:
        raise ValueError("neither a zip archive nor a pickle")


def check_pickle(stream: io.BytesIO) -> None:
    """Read one pickle up to its STOP; errors as `refuse_tangled`."""
    frames: list[list[Value]] = [[]]  # the stack, cut at its marks
    memo: dict[Any, Value] = {}
    steps = 0
    for opcode, argument, _ in pickletools.genops(stream):
        name, stack = opcode.name, frames[-1]
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
            steps += stack[-1].parts
        elif name == "MARK":
            frames.append([])
        elif name in TUPLES:
            items = taken(frames, TUPLES[name])
            depth = 1 + max((item.depth for item in items), default=0)
            frames[-1].append(Value(1 + sum(item.parts for item in items), depth))
        elif name in ADDED:
            items = taken(frames, ADDED[name])
            frames[-1][-1].parts += sum(item.parts for item in items)
        elif name in ("REDUCE", "NEWOBJ"):
            _, arguments = taken(frames, 2)
            stack.append(Value(arguments.parts))
        elif name == "BINPERSID":
            stack[-1] = Value()
        elif not opcode.stack_before:
            stack.extend(Value() for _ in opcode.stack_after)
        elif name != "STOP":
            raise ValueError(f"the opcode {name}, which torch.save does not write")
        steps += 1
        if steps > MOST_STEPS:
            raise ValueError(f"more than {MOST_STEPS:,} values, which no checkpoint of adapters has")
        if stack and stack[-1].depth > DEEPEST:
            raise ValueError(f"tuples nested more than {DEEPEST} deep, which torch.save never makes of tensors")


def taken(frames: list[list[Value]], count: int) -> list[Value]:
    """The topmost `count` values, or with -1 all since the mark, taken off the stack; IndexError for too few."""
    if count < 0:
        return frames.pop()
    stack = frames[-1]
    if len(stack) < count:
        raise IndexError("a stack with too few values")
    items = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return items
