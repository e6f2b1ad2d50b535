"""The loops of :mod:`kernels.adagn_silu.cpu`, compiled by Numba at their first use and then kept on disk.

A task is a sample's block of channels, gone through two or three times. Channels lie innermost, so every loop
over them becomes vector instructions; sums run along pixels, for all channels at once. bfloat16 comes in as
the integers that it is: two shifts turn it into float32 and back, which costs nothing beside reading it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

I32, U16, U32, F32 = np.int32, np.uint16, np.uint32, np.float32

# Floating-point rules that let loops become vectors. Not "reassoc": rounding by adding a large number, below,
# must not be simplified away; not "nnan" nor "ninf": what is not finite must stay so, for others to notice.
RULES: dict[str, Any] = {"fastmath": {"contract", "arcp", "nsz"}, "error_model": "numpy"}

RUN = 128  # pixels that are summed before they join the sum of all, which keeps the digits of long sums

# Slots of the parameters, 8 bytes each.
SLOTS = 24
NEXT, TASKS, BATCH, PIXELS, CHANNELS, GROUPS, WIDTH, REPEATS, SILU, EPS = range(10)
X, WEIGHT, BIAS, TIME, Z, MEAN, RSTD, Y, GRAD, D_X, D_WEIGHT, D_BIAS, D_TIME, D_Z = range(10, SLOTS)


@intrinsic
def _claim(typingctx, parameters):
    """The next task's number, taken from the first slot atomically: threads share tasks through it."""

    def generate(context, builder, signature, args):
        word = ir.IntType(64)
        counter = builder.bitcast(args[0], word.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(word, 1), "monotonic")

    return types.int64(types.voidptr), generate


@intrinsic
def _at(typingctx, address):
    """The pointer to an address."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def _load(stored):
    """A number from memory, in the dtype that is computed in."""


def _store(value, stored):
    """A number for memory, in the dtype of ``stored``."""


def _sigmoid(h):
    """1 / (1 + exp(-h))."""


@overload(_load)
def _(stored):
    if stored == types.uint16:
        return lambda stored: U32(U32(stored) << U32(16)).view(F32)
    return lambda stored: stored


@overload(_store)
def _(value, stored):
    if stored == types.uint16:
        return _to_bfloat16
    return lambda value, stored: value


def _to_bfloat16(value, stored):
    # To the nearest, ties to even; the sum would carry some NaNs over into zero.
    bits = F32(value).view(U32)
    odd = U32(U32(bits >> U32(16)) & U32(1))
    rounded = U32(U32(U32(bits + U32(0x7FFF)) + odd) >> U32(16))
    return U16(rounded if value == value else U32(0x7FC0))


@overload(_sigmoid)
def _(h):
    return _sigmoid_32 if h == types.float32 else lambda h: 1.0 / (1.0 + math.exp(-h))


MINUS_LOG2_E, ONE, MOST, LEAST = F32(-math.log2(math.e)), F32(1), F32(126), F32(-126)
MAGIC = F32(1.5 * 2**23)  # a sum with it is rounded to a whole number, which its last bits then are
C_1, C_2, C_3, C_4, C_5, C_6 = (F32(math.log(2) ** n / math.factorial(n)) for n in range(1, 7))


def _sigmoid_32(h):
    # exp(-h) = 2^n 2^f: n goes into the exponent's bits, 2^f for |f| <= 1/2 is a polynomial (error 2e-7).
    power = h * MINUS_LOG2_E
    power = MOST if power > MOST else power
    power = LEAST if power < LEAST else power
    shifted = F32(power + MAGIC)
    f = power - F32(shifted - MAGIC)
    fraction = F32(ONE + f * (C_1 + f * (C_2 + f * (C_3 + f * (C_4 + f * (C_5 + f * C_6))))))
    exp = I32(I32(shifted.view(I32) << I32(23)) + fraction.view(I32)).view(F32)
    return ONE / (ONE + exp)


@njit(**RULES)
def _fold(gain, shift, rstd, conditions, b, first):
    """gain and shift (width,) of x - mean: the norm's own and both modulations, folded into one."""
    weight, bias, time, z, has_time, has_z = conditions
    channels, one, last = len(weight), weight.dtype.type(1), first + len(gain)
    gain[:], shift[:] = weight[first:last], bias[first:last]
    if has_time:
        scale, offset = time[b, first:last], time[b, channels + first : channels + last]
        for c in range(len(gain)):
            gain[c] *= one + scale[c]
            shift[c] = shift[c] * (one + scale[c]) + offset[c]
    if has_z:
        scale, offset = z[b, first:last], z[b, channels + first : channels + last]
        for c in range(len(gain)):
            gain[c] *= one + scale[c]
            shift[c] = shift[c] * (one + scale[c]) + offset[c]
    for c in range(len(gain)):
        gain[c] *= rstd[c]


@njit(**RULES)
def _unfold(sum_1, sum_x, rstd, conditions, gradients, b, first):
    """Write the gradients of what :func:`_fold` takes, from the sums over pixels (width,) of the gradient
    (``sum_1``) and of its product with x - mean (``sum_x``).
    """
    weight, bias, time, z, has_time, has_z = conditions
    d_weight, d_bias, d_time, d_z = gradients
    channels, one, last = len(weight), weight.dtype.type(1), first + len(rstd)
    w, o, d_w, d_o = weight[first:last], bias[first:last], d_weight[b, first:last], d_bias[b, first:last]
    for c in range(len(rstd)):
        d_w[c], d_o[c] = sum_x[c] * rstd[c], sum_1[c]
    if has_z:
        scale, d_scale = z[b, first:last], d_z[b, first:last]
        d_offset = d_z[b, channels + first : channels + last]
        if has_time:
            before, offset = time[b, first:last], time[b, channels + first : channels + last]
            for c in range(len(rstd)):
                k = one + before[c]
                d_scale[c] = d_w[c] * w[c] * k + d_o[c] * (o[c] * k + offset[c])
        else:
            for c in range(len(rstd)):
                d_scale[c] = d_w[c] * w[c] + d_o[c] * o[c]
        for c in range(len(rstd)):
            d_offset[c] = d_o[c]
            d_w[c] *= one + scale[c]
            d_o[c] *= one + scale[c]
    if has_time:
        scale, d_scale = time[b, first:last], d_time[b, first:last]
        d_offset = d_time[b, channels + first : channels + last]
        for c in range(len(rstd)):
            d_scale[c], d_offset[c] = d_w[c] * w[c] + d_o[c] * o[c], d_o[c]
            d_w[c] *= one + scale[c]
            d_o[c] *= one + scale[c]


@njit(**RULES)
def _gather(lanes, width):
    """Add to each of the first ``width`` what others have for the same channel: lane l is of l mod width."""
    for start in range(width, len(lanes), width):
        more = lanes[start : start + width]
        for c in range(width):
            lanes[c] += more[c]


@njit(**RULES)
def _spread(lanes, width):
    """Copy the first ``width`` to all others."""
    for start in range(width, len(lanes), width):
        lanes[start : start + width] = lanes[:width]


@njit(**RULES)
def _over_groups(sums, depth, count):
    """Replace each channel's value by its group's sum over ``count``."""
    for start in range(0, len(sums), depth):
        group = sums[start : start + depth]
        total = group[0]
        for c in range(1, depth):
            total += group[c]
        group[:] = total / count


@njit(**RULES)
def forward(images, conditions, statistics, eps, silu, task, width, repeats):
    """Write a block of y, and mean and 1 / deviation (B, G) of its groups.

    Args:
        images: x and y (B, P / repeats, repeats C): so many pixels side by side make the loops of few
            channels longer.
        conditions: weight, bias (C,), time, z (B, 2 C), and whether there is a time and a z to be read.
        statistics: mean and 1 / deviation.
        task: b C / width + block.
        width: channels of a block, whole groups; all where ``repeats`` is not 1.
    """
    (x, y), (mean, rstd), weight = images, statistics, conditions[0]
    rows, one, zeros = x.shape[1], weight.dtype.type(1), np.zeros(width * repeats, weight.dtype)
    depth, blocks, lanes = len(weight) // mean.shape[1], len(weight) // width, width * repeats
    b, first = task // blocks, task % blocks * width
    end, groups = first + lanes, slice(first // depth, (first + width) // depth)
    count = weight.dtype.type(depth * rows * repeats)
    centre, deviation, part = zeros.copy(), zeros.copy(), zeros.copy()
    gain, shift = zeros.copy(), zeros.copy()
    for start in range(0, rows, RUN):
        part[:] = 0
        for p in range(start, min(start + RUN, rows)):
            row = x[b, p, first:end]
            for c in range(lanes):
                part[c] += _load(row[c])
        for c in range(lanes):
            centre[c] += part[c]
    _gather(centre, width)
    _over_groups(centre[:width], depth, count)
    _spread(centre, width)
    for start in range(0, rows, RUN):
        part[:] = 0
        for p in range(start, min(start + RUN, rows)):
            row = x[b, p, first:end]
            for c in range(lanes):
                distance = _load(row[c]) - centre[c]
                part[c] += distance * distance
        for c in range(lanes):
            deviation[c] += part[c]
    _gather(deviation, width)
    _over_groups(deviation[:width], depth, count)
    for c in range(width):
        deviation[c] = one / np.sqrt(deviation[c] + eps)
    mean[b, groups], rstd[b, groups] = centre[:width:depth], deviation[:width:depth]
    _fold(gain[:width], shift[:width], deviation, conditions, b, first)
    _spread(gain, width)
    _spread(shift, width)
    for p in range(rows):
        row, out = x[b, p, first:end], y[b, p, first:end]
        if silu:
            for c in range(lanes):
                h = (_load(row[c]) - centre[c]) * gain[c] + shift[c]
                out[c] = _store(h * _sigmoid(h), out[c])
        else:
            for c in range(lanes):
                out[c] = _store((_load(row[c]) - centre[c]) * gain[c] + shift[c], out[c])


@njit(**RULES)
def backward(images, conditions, statistics, gradients, silu, task, width, repeats):
    """Write a block of all gradients.

    Args:
        images: x, the gradient of y and that of x.
        gradients: of weight and bias for each sample (B, C), of time and z (B, 2 C).
        conditions, statistics, silu, task, width, repeats: as for :func:`forward`.
    """
    (x, grad, d_x), (mean, rstd), weight = images, statistics, conditions[0]
    rows, one, zeros = x.shape[1], weight.dtype.type(1), np.zeros(width * repeats, weight.dtype)
    depth, blocks, lanes = len(weight) // mean.shape[1], len(weight) // width, width * repeats
    b, first = task // blocks, task % blocks * width
    end, count = first + lanes, weight.dtype.type(depth * rows * repeats)
    centre, gain, shift, inverse = zeros.copy(), zeros.copy(), zeros.copy(), zeros[:width].copy()
    sum_1, sum_x, part_1, part_x = zeros.copy(), zeros.copy(), zeros.copy(), zeros.copy()
    inner = np.empty((rows, lanes), weight.dtype)  # the gradient of what SiLU was taken of
    for c in range(0, width, depth):
        centre[c : c + depth] = mean[b, (first + c) // depth]
        inverse[c : c + depth] = rstd[b, (first + c) // depth]
    _fold(gain[:width], shift[:width], inverse, conditions, b, first)
    _spread(centre, width)
    _spread(gain, width)
    _spread(shift, width)
    for start in range(0, rows, RUN):
        part_1[:], part_x[:] = 0, 0
        for p in range(start, min(start + RUN, rows)):
            row, outer, d = x[b, p, first:end], grad[b, p, first:end], inner[p]
            if silu:
                for c in range(lanes):
                    h = (_load(row[c]) - centre[c]) * gain[c] + shift[c]
                    s = _sigmoid(h)
                    d[c] = _load(outer[c]) * (s * (one + h * (one - s)))
            else:
                for c in range(lanes):
                    d[c] = _load(outer[c])
            for c in range(lanes):
                part_1[c] += d[c]
                part_x[c] += d[c] * (_load(row[c]) - centre[c])
        for c in range(lanes):
            sum_1[c] += part_1[c]
            sum_x[c] += part_x[c]
    _gather(sum_1, width)
    _gather(sum_x, width)
    _unfold(sum_1, sum_x, inverse, conditions, gradients, b, first)
    # A shift or a stretch of the whole group leaves what is normalised as it is: no gradient along those two.
    for c in range(width):
        sum_1[c] *= -gain[c]
        sum_x[c] *= -gain[c] * inverse[c] * inverse[c]
    _over_groups(sum_1[:width], depth, count)
    _over_groups(sum_x[:width], depth, count)
    _spread(sum_1, width)
    _spread(sum_x, width)
    for p in range(rows):
        row, d, out = x[b, p, first:end], inner[p], d_x[b, p, first:end]
        for c in range(lanes):
            distance = _load(row[c]) - centre[c]
            out[c] = _store(d[c] * gain[c] + (sum_1[c] + sum_x[c] * distance), out[c])


@njit(**RULES)
def _image(a, slot, stored):
    shape = (a[BATCH], a[PIXELS] // a[REPEATS], a[CHANNELS] * a[REPEATS])
    return carray(_at(a[slot]), shape, stored)  # type: ignore[call-arg]


@njit(**RULES)
def _matrix(a, slot, columns, computed):
    return carray(_at(a[slot]), (a[BATCH], columns), computed)  # type: ignore[call-arg]


@njit(**RULES)
def _given(a, computed):
    """Conditions and statistics."""
    weight = carray(_at(a[WEIGHT]), (a[CHANNELS],), computed)  # type: ignore[call-arg]
    bias = carray(_at(a[BIAS]), (a[CHANNELS],), computed)  # type: ignore[call-arg]
    time, z = _matrix(a, TIME, 2 * a[CHANNELS], computed), _matrix(a, Z, 2 * a[CHANNELS], computed)
    statistics = _matrix(a, MEAN, a[GROUPS], computed), _matrix(a, RSTD, a[GROUPS], computed)
    return (weight, bias, time, z, a[TIME] != 0, a[Z] != 0), statistics


@njit(**RULES)
def _gradients(a, computed):
    d_weight, d_bias = _matrix(a, D_WEIGHT, a[CHANNELS], computed), _matrix(a, D_BIAS, a[CHANNELS], computed)
    d_time, d_z = _matrix(a, D_TIME, 2 * a[CHANNELS], computed), _matrix(a, D_Z, 2 * a[CHANNELS], computed)
    return d_weight, d_bias, d_time, d_z


def entries(stored: Any, computed: Any, cache: bool) -> tuple[Any, Any]:
    """Forward and backward as C functions of a pointer to :data:`SLOTS` parameters.

    All threads call one with the same parameters, and share its tasks.

    Args:
        stored: NumPy dtype of the images, uint16 for bfloat16.
        computed: of all else.
        cache: whether to keep them on disk.
    """

    def run_forward(parameters):
        a = carray(parameters, (SLOTS,), np.int64)
        eps = computed(carray(parameters, (SLOTS,), np.float64)[EPS])
        images = _image(a, X, stored), _image(a, Y, stored)
        conditions, statistics = _given(a, computed)
        task = _claim(parameters)  # type: ignore[call-arg, var-annotated]
        while task < a[TASKS]:
            forward(images, conditions, statistics, eps, a[SILU] != 0, task, a[WIDTH], a[REPEATS])
            task = _claim(parameters)  # type: ignore[call-arg]

    def run_backward(parameters):
        a = carray(parameters, (SLOTS,), np.int64)
        images = _image(a, X, stored), _image(a, GRAD, stored), _image(a, D_X, stored)
        conditions, statistics = _given(a, computed)
        gradients = _gradients(a, computed)
        task = _claim(parameters)  # type: ignore[call-arg, var-annotated]
        while task < a[TASKS]:
            backward(images, conditions, statistics, gradients, a[SILU] != 0, task, a[WIDTH], a[REPEATS])
            task = _claim(parameters)  # type: ignore[call-arg]

    compiled = cfunc(types.void(types.voidptr), cache=cache, **RULES)
    return compiled(run_forward), compiled(run_backward)
