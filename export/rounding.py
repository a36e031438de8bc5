"""From real numbers to few bits with the least harm: ranges of activations, and the rounding of weights.

Pure functions of arrays. Integers here are symmetric for weights (-127..127) and span a range for activations.
"""

from __future__ import annotations

import numpy as np

# What is cut off errs one way, while rounding errs both ways and averages out in the sums behind: it counts for more.
CUT = 4.0
BLOCK = 128  # columns that are rounded before their error is carried to the rest


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


def round_weights(weights: np.ndarray, moments: np.ndarray, damping: float = 0.01) -> np.ndarray:
    """Weights [inputs, outputs] rounded so that what they answer, not they, changes least; float of the same shape.

    moments: [inputs, inputs], the covariance of the inputs that the rounded weights will see. Each weight is rounded in
    turn and its error made up for by those that are still free (GPTQ, arXiv:2210.17323); `damping` of the mean variance
    is added to each. The scale of an output is its largest weight divided by 127, and that weight stays, so that
    whoever quantises the result finds the same scale. Weights that are 0 stay 0: they may have been pruned.
    """
    scale = np.abs(weights).max(axis=0) / 127
    scale[scale == 0] = 1.0
    pinned = np.abs(weights).argmax(axis=0)
    largest = weights[pinned, np.arange(weights.shape[1])]
    diagonal = np.diag(moments)
    order = np.argsort(-diagonal, kind="stable")
    moments = moments[np.ix_(order, order)] + damping * max(diagonal.mean(), 1e-30) * np.eye(
        len(moments), dtype=moments.dtype
    )
    # The upper Cholesky factor of the inverse holds, row by row, how the rest makes up for one weight's error.
    lower = np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1]
    factor = _inverse_of_triangle(lower)
    work, position = weights[order].astype(np.float32), np.argsort(order)[pinned]
    zero = work == 0
    scale32 = scale.astype(np.float32)
    rounded = np.empty_like(work)
    for start in range(0, len(work), BLOCK):
        stop = min(start + BLOCK, len(work))
        errors = np.empty((stop - start, work.shape[1]), np.float32)
        for row in range(start, stop):
            q = np.clip(np.rint(work[row] / scale32), -127, 127) * scale32
            q = np.where(position == row, largest, q)
            q = np.where(zero[row], 0, q)
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
