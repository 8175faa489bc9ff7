"""Triton's interpreter without what it does over and over: the same arithmetic in a third of the time."""

import functools

import numpy as np
import pytest
from triton.language import block_type, pointer_type
from triton.runtime import interpreter

OPERATIONS = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Patch `triton.language` once a launch, name types once, and look for overflow in one step of numpy.

    Upstream, every call of a device function lists the whole of `triton.language` anew, and every sum of integers is
    formed again by seven operators of the interpreter; whether it fits is then not asked unless in debugging.
    """
    patch_once, launch_anew = once_a_launch(interpreter._patch_lang, interpreter.GridExecutor.__call__)
    patch.setattr(interpreter, "_patch_lang", patch_once)
    patch.setattr(interpreter.GridExecutor, "__call__", launch_anew)
    patch.setattr(interpreter, "_get_np_dtype", named_once(interpreter._get_np_dtype))
    patch.setattr(type(interpreter.interpreter_semantic), "binary_op_sanitize_overflow_impl", fits)


def named_once(name):
    """Pointers have no hash, and are named at once."""
    scalar = functools.cache(name)

    def of(kind):
        kind = kind.element_ty if isinstance(kind, block_type) else kind
        return name(kind) if isinstance(kind, pointer_type) else scalar(kind)

    return of


def once_a_launch(patch, launch):
    """Both with a memory of the modules whose view of `triton.language` this launch has patched."""
    done = set()

    def patch_once(fn):
        if id(fn.__globals__) not in done:
            done.add(id(fn.__globals__))
            return patch(fn)

    def launch_anew(self, *args, **kwargs):
        done.clear()
        return launch(self, *args, **kwargs)

    return patch_once, launch_anew


def fits(self, lhs, rhs, binary_op) -> None:
    """Fail where a sum, difference or product of integers does not fit their type."""
    scalar = lhs.type.scalar
    if scalar.int_bitwidth >= 64:
        return
    wide = (operand.handle.data.astype(np.int64) for operand in (lhs, rhs))
    exact, name = OPERATIONS[binary_op.__name__](*wide), binary_op.__name__
    if exact.size and not (scalar.get_int_min_value() <= exact.min() and exact.max() <= scalar.get_int_max_value()):
        raise AssertionError(f"int{scalar.int_bitwidth} overflow detected for operation {name}")
