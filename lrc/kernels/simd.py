"""LLVM's vectors for numba: what its loops would not be vectorized to.

Functions that emit code, for use in `numba.extending.intrinsic`. A vector is as wide as the rows
of an array [rows, width]; LLVM splits it into whatever registers the machine has.

numba does not see changes of this file when it looks for compiled code on disk: after one, `make
clean` makes it compile anew.
"""

from contextlib import contextmanager

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

_INDEX = ir.IntType(types.intp.bitwidth)  # type: ignore[attr-defined]
_LANE = ir.IntType(32)


def narrowest(bits, kinds):
    """The first of some signed types, narrow ones first, that holds so many bits, or None."""
    return next((kind for kind in kinds if bits < np.iinfo(kind).bits), None)


def index(number):
    return ir.Constant(_INDEX, number)


def integer(bits):
    return ir.IntType(bits)


def rows(context, builder, signature, args, which, width):
    """An array argument as a pointer to its rows, each of them a vector."""
    data = context.make_array(signature.args[which])(context, builder, args[which]).data
    return builder.bitcast(data, ir.VectorType(data.type.pointee, width).as_pointer())


def load(builder, rows, row):
    return builder.load(builder.gep(rows, [row]), align=_bytes(rows.type.pointee.element))


def store(builder, vector, rows, row):
    builder.store(vector, builder.gep(rows, [row]), align=_bytes(vector.type.element))


def _bytes(number):
    if isinstance(number, ir.IntType):
        return number.width // 8
    return 4 if isinstance(number, ir.FloatType) else 8


def constant(vector, number):
    return ir.Constant(vector, [number] * vector.count)


def splat(builder, number, vector):
    """A vector of the same number everywhere."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(_LANE, 0))
    return builder.shuffle_vector(first, first, constant(ir.VectorType(_LANE, vector.count), 0))


def shift(builder, vector, steps, fill):
    """Move every number up by some lanes; the lowest lanes get those of `fill`."""
    width = vector.type.count
    lanes = [width + i if i < steps else i - steps for i in range(width)]
    return builder.shuffle_vector(vector, fill, ir.Constant(ir.VectorType(_LANE, width), lanes))


def last(builder, vector):
    return builder.extract_element(vector, ir.Constant(_LANE, vector.type.count - 1))


def min_max(builder, a, b):
    """The lower and the higher of two vectors, lane by lane."""
    lower = builder.icmp_signed("<", a, b)
    return builder.select(lower, a, b), builder.select(lower, b, a)


@contextmanager
def by_steps(builder, stop, step):
    """Loop over 0, step, ... below `stop`."""
    bounds = (index(0), stop, index(step))
    with cgutils.for_range_slice(builder, *bounds, intp=stop.type, inc=True) as (first, _):
        yield first
