"""From real numbers to few bits with the least harm: ranges of activations, and the rounding of weights.

Pure functions of arrays. Integers here are symmetric for weights (-127..127) and span a range for activations.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# What is cut off errs one way, while rounding errs both ways and averages out in the sums behind: it counts for more.
CUT = 4.0
BLOCK = 128  # columns that are rounded before their error is carried to the rest
LLOYD, BINS = 300, 64  # iterations for a palette, and bins of the weights' density that it begins with


def clipped_range(values: np.ndarray, levels: int = 255, candidates: int = 48) -> tuple[float, float]:
    """The range (low, high), zero inside, in which rounding values to its steps leaves the least squared error.

    values: any shape; levels: how many steps. Wider ranges cut less and round more coarsely; what is cut weighs CUT.
    """
    values = np.sort(values[values != 0].astype(np.float64).ravel())
    if not len(values):
        return 0.0, 1.0
    low, high = min(values[0], 0.0), max(values[-1], 0.0)
    lows = low * np.linspace(1, 0.1, candidates) if low < 0 else np.zeros(1)
    highs = high * np.linspace(1, 0.1, candidates) if high > 0 else np.zeros(1)
    sums = np.concatenate([[0], np.cumsum(values)])
    squares = np.concatenate([[0], np.cumsum(values**2)])
    below, above = np.searchsorted(values, lows), np.searchsorted(values, highs, side="right")
    cut_low = squares[below] - 2 * lows * sums[below] + lows**2 * below
    n = len(values) - above
    cut_high = (squares[-1] - squares[above]) - 2 * highs * (sums[-1] - sums[above]) + highs**2 * n
    inside = above[None, :] - below[:, None]
    step = (highs[None, :] - lows[:, None]) / levels
    error = CUT * (cut_low[:, None] + cut_high[None, :]) + inside * step**2 / 12
    i, j = np.unravel_index(np.argmin(error), error.shape)
    return float(lows[i]), float(highs[j])


# The nearest values that a format has: (input, outputs, what stands there, [outputs]) to the same rounded.
Nearest = Callable[[int, slice, np.ndarray], np.ndarray]


def steps(weights: np.ndarray, most: int = 127, block: np.ndarray | None = None) -> Nearest:
    """Whole multiples, from -most to most, of a scale for each output of weights [inputs, outputs].

    block: [inputs], the number of the block that an input is in, for a scale a block. A scale is the largest of its
    weights divided by `most`, and that weight stays, so that whoever quantises the result finds the same scale.
    """
    block = np.zeros(len(weights), int) if block is None else block
    size = np.abs(weights)
    largest = np.stack([size[block == i].max(axis=0) for i in range(block.max() + 1)])
    scale = (largest / most).astype(np.float32)
    scale[scale == 0] = 1.0
    # The first of the largest, for there may be more of them.
    stays = np.zeros(weights.shape, bool)
    for i in range(len(largest)):
        rows = np.flatnonzero(block == i)
        stays[rows[size[rows].argmax(axis=0)], np.arange(weights.shape[1])] = True

    def nearest(row: int, own: slice, values: np.ndarray) -> np.ndarray:
        step = scale[block[row], own]
        return np.where(stays[row, own], weights[row, own], np.clip(np.rint(values / step), -most, most) * step)

    return nearest


def palette(weights: np.ndarray, importance: np.ndarray, count: int, group: int = 0) -> Nearest:
    """The values of a palette of `count` numbers for all weights [inputs, outputs], or for each `group` of outputs.

    They are those that leave the least squared error where each weight counts as `importance`, of the same shape, says
    (Lloyd's iteration), and are numbers of float16. Where weights are 0, 0 is one.
    """
    outputs = weights.shape[1]
    group = group or outputs
    tables = []
    for start in range(0, outputs, group):
        own = slice(start, start + group)
        tables.append(_palette_of(weights[:, own].ravel(), importance[:, own].ravel(), count))
    values = np.stack(tables)
    middles, of = (values[:, 1:] + values[:, :-1]) / 2, np.arange(outputs) // group

    def nearest(row: int, own: slice, x: np.ndarray) -> np.ndarray:
        table = of[own]
        if len(values) == 1:
            return values[0, np.searchsorted(middles[0], x)]
        return values[table, (x[:, None] > middles[table]).sum(axis=1)]

    return nearest


def _palette_of(weights: np.ndarray, importance: np.ndarray, count: int) -> np.ndarray:
    order = np.argsort(weights, kind="stable")
    x, counts = weights[order].astype(np.float64), importance[order].astype(np.float64)
    sums, moments = (np.concatenate([[0], np.cumsum(part)]) for part in (counts, counts * x))
    # Begin with the spacing that is best for many values: as dense as the cube root of the weights' density
    # (Panter and Dite, 1951). From equal shares, tails would take hundreds of iterations.
    heights, edges = np.histogram(x, BINS, weights=counts)
    reached = np.concatenate([[0], np.cumsum(np.cbrt(heights))])
    values = np.interp((np.arange(count) + 0.5) / count * reached[-1], reached, edges)
    for _ in range(LLOYD):
        ends = np.concatenate([[0], np.searchsorted(x, (values[1:] + values[:-1]) / 2), [len(x)]])
        mass = np.diff(sums[ends])
        values = np.where(mass > 0, np.diff(moments[ends]) / np.maximum(mass, 1e-300), values)
    values = np.sort(values)
    if (x == 0).any():
        values[np.abs(values).argmin()] = 0
    return values.astype(np.float16).astype(np.float32)


def half(weights: np.ndarray, importance: np.ndarray) -> Nearest:
    """0 for the half of all weights that does least, by size and the root of `importance`; the others as they are."""
    worth = np.abs(weights) * np.sqrt(importance)
    gone = worth <= np.partition(worth.ravel(), worth.size // 2 - 1)[worth.size // 2 - 1]
    return lambda row, own, values: np.where(gone[row, own], 0, values)


def round_weights(
    weights: np.ndarray, moments: np.ndarray, nearest: Nearest, own: slice = slice(None), damping: float = 0.01
) -> np.ndarray:
    """Weights [inputs, outputs] rounded so that what they answer, not they, changes least; float of the same shape.

    moments: [inputs, inputs], the covariance of the inputs that the rounded weights will see. Each weight is rounded in
    turn and its error made up for by those that are still free (GPTQ, arXiv:2210.17323; of pruning, arXiv:2301.00774);
    `damping` of the mean variance is added to each. nearest: the values that there are; own: which of its outputs these
    are. Weights that are 0 stay 0: they may have been pruned.
    """
    diagonal = np.diag(moments)
    order = np.argsort(-diagonal, kind="stable")
    moments = moments[np.ix_(order, order)] + damping * max(diagonal.mean(), 1e-30) * np.eye(
        len(moments), dtype=moments.dtype
    )
    # The upper Cholesky factor of the inverse holds, row by row, how the rest makes up for one weight's error.
    lower = np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1]
    factor = _inverse_of_triangle(lower)
    work = weights[order].astype(np.float32)
    zero = work == 0
    rounded = np.empty_like(work)
    for start in range(0, len(work), BLOCK):
        stop = min(start + BLOCK, len(work))
        errors = np.empty((stop - start, work.shape[1]), np.float32)
        for row in range(start, stop):
            q = np.where(zero[row], 0, nearest(int(order[row]), own, work[row]))
            error = (work[row] - q) / factor[row, row]
            work[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], error)
            rounded[row], errors[row - start] = q, error
        work[stop:] -= factor[start:stop, stop:].T @ errors
    return rounded[np.argsort(order)]


def _inverse_of_triangle(upper: np.ndarray) -> np.ndarray:
    """The inverse of an upper triangular matrix, by halves: nearly all of it is products of matrices."""
    n = len(upper)
    if n <= 64:
        return np.triu(np.linalg.inv(upper))
    half = n // 2
    result = np.zeros_like(upper)
    result[:half, :half] = _inverse_of_triangle(upper[:half, :half])
    result[half:, half:] = _inverse_of_triangle(upper[half:, half:])
    result[:half, half:] = -result[:half, :half] @ upper[:half, half:] @ result[half:, half:]
    return result
