"""Triton's interpreter without what it does over and over: the same arithmetic in a third of the time."""

import functools

import numpy as np
import pytest
from triton._utils import validate_block_shape
from triton.language import block_type, constexpr, pointer_type, tensor
from triton.language import tuple as wrapped
from triton.runtime import interpreter

OPERATIONS = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def quicken(patch: pytest.MonkeyPatch) -> None:
    """Patch `triton.language` once a launch, name types and shapes once, look for overflow in one step of numpy.

    Upstream, every call of a device function lists the whole of `triton.language` anew; every tensor wraps the sizes
    of its shape one by one, and every operator compares them wrapped; and every sum of integers is formed again by
    seven operators of the interpreter; whether it fits is then not asked unless in debugging.
    """
    semantic = type(interpreter.interpreter_semantic)
    patch_once, launch_anew = once_a_launch(interpreter._patch_lang, interpreter.GridExecutor.__call__)
    patch.setattr(interpreter, "_patch_lang", patch_once)
    patch.setattr(interpreter.GridExecutor, "__call__", launch_anew)
    patch.setattr(interpreter, "_get_np_dtype", named_once(interpreter._get_np_dtype))
    patch.setattr(semantic, "binary_op_sanitize_overflow_impl", fits)
    patch.setattr(semantic, "broadcast_impl_value", equal_shapes_first(semantic.broadcast_impl_value))
    patch.setattr(block_type, "__init__", shaped)
    patch.setattr(block_type, "name", property(lambda self: f"<{self.shape}, {self.element_ty}>"), raising=False)
    patch.setattr(tensor, "__init__", filled)


def named_once(name):
    """Pointers have no hash, and are named at once."""
    scalar = functools.cache(name)

    def of(kind):
        kind = kind.element_ty if isinstance(kind, block_type) else kind
        return name(kind) if isinstance(kind, pointer_type) else scalar(kind)

    return of


@functools.cache
def validated(shape):
    """(the shape of a type, of a tensor, the number of elements) as upstream makes them, once for each shape."""
    kind = wrapped(list(shape))
    return kind, wrapped([constexpr(size) for size in shape]), validate_block_shape(kind)


def shaped(self, element_ty, shape) -> None:
    """`block_type.__init__`."""
    sizes = tuple(size.value if isinstance(size, constexpr) else size for size in shape)
    if not sizes:
        raise TypeError("0d block_type is forbidden")
    self.element_ty = element_ty
    self.shape, self.wrapped, self.numel = validated(sizes)


NO_SIZES, ONE = wrapped([]), constexpr(1)


def filled(self, handle, type) -> None:
    """`tensor.__init__`."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    if type.is_block():
        self.shape, self.numel = type.wrapped, constexpr(type.numel)
    else:
        self.shape, self.numel = NO_SIZES, ONE


def equal_shapes_first(broadcast):
    """Tensors of one shape are what upstream makes of them."""

    def either(self, lhs, rhs):
        one, other = lhs.type, rhs.type
        if one.is_block() and other.is_block() and one.shape is other.shape:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    return either


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
