"""A file's test of itself: a few small pictures inside it, with the scores that it gave when it was made.

A picture is stored coarse, one pixel for a square of `factor` x `factor`: repeating pixels is exact on every phone,
while decoders and resizing differ. An app compares top-1 and the best scores at its first start, or the largest numbers
of an embedding.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_resnet.errors import InputError

NAME = "golden.json"
COUNT, TOP, LONGEST = 8, 5, 64  # pictures; scores, or numbers of an embedding, that are kept of each
SIDE, LEAST = 16, 8  # pixels at most and at least that a side is stored with
MOST_BYTES = 100_000  # of all pictures
# XNNPACK, built-in and reference kernels differ by a step of int8 here and there, which moves a score by a few
TOLERANCE = 0.15
EMBEDDING, ANGLE = "embedding", 0.05  # what answers are, and how much of a cosine similarity of 1 may be missing
LOGITS = "logits"


@dataclass(frozen=True)
class SelfTest:
    """How a file answered its own pictures here; differences are of scores, of an embedding 1 - cosine similarity."""

    count: int
    agreeing: int
    largest_difference: float
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        return self.agreeing == self.count and self.largest_difference <= self.tolerance


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine similarity of each row of one array to that of another, both [n, length]; of nothing to anything 0."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray(np.sum(a * b, axis=-1) / np.maximum(lengths, np.finfo(np.float64).tiny))


def coarse(pixels: np.ndarray) -> np.ndarray:
    """Pictures, uint8 [n, height, width, 3], with one pixel, the mean, for each square; at most SIDE pixels a side.

    As they are where no square fits.
    """
    n, height, width, channels = pixels.shape
    sizes = [f for f in range(1, height + 1) if height % f == width % f == 0 and min(height, width) // f >= LEAST]
    factor = next((f for f in sizes if max(height, width) // f <= SIDE), 1)
    squares = pixels.reshape(n, height // factor, factor, width // factor, factor, channels)
    return np.asarray(np.round(squares.mean(axis=(2, 4))).astype(np.uint8))


def pictures(size: tuple[int, int], count: int = 40) -> np.ndarray:
    """Coloured noise of large spots, uint8 [count, height, width, 3]: for a file that no picture was given for."""
    spots = np.random.default_rng(0).integers(0, 256, (count, LEAST, LEAST, 3), dtype=np.uint8)
    rows, columns = (np.arange(length) * LEAST // length for length in size)
    return np.asarray(spots[:, rows][:, :, columns])


def spread(small: np.ndarray, factor: int) -> np.ndarray:
    """Each pixel as a square of factor x factor."""
    return np.repeat(np.repeat(small, factor, axis=1), factor, axis=2)


def record(pixels: np.ndarray, scores: Callable[[np.ndarray], np.ndarray], kind: str = "softmax") -> bytes:
    """The test as JSON: of pictures, uint8 [n, height, width, 3], those that are answered most clearly.

    kind: what the answers are, see `concrete.answers_with`.
    """
    small = coarse(pixels)
    factor = pixels.shape[1] // small.shape[1]
    answers = scores(spread(small, factor))
    count = max(1, min(COUNT, MOST_BYTES // small[0].nbytes))
    if kind == EMBEDDING:
        clearness = np.linalg.norm(answers - answers.mean(axis=0), axis=-1)
        best = np.argsort(-np.abs(answers), axis=-1, kind="stable")[:, :LONGEST]
    else:
        ordered = np.sort(answers, axis=-1)
        clearness = ordered[:, -1] - ordered[:, -2:][:, 0]  # of one class: all alike
        best = np.argsort(-answers, axis=-1, kind="stable")[:, :TOP]
    clear = np.argsort(-clearness, kind="stable")[:count]
    spread_of_logits = float(np.ptp(answers)) if kind == LOGITS else 1.0
    value = {
        "answers": kind,
        "factor": factor,
        "height": int(small.shape[1]),
        "width": int(small.shape[2]),
        "tolerance": ANGLE if kind == EMBEDDING else TOLERANCE * spread_of_logits,
        "pictures": [
            {
                "pixels": base64.b64encode(small[i].tobytes()).decode(),
                "classes": best[i].tolist(),
                "scores": [round(float(answers[i, c]), 6) for c in best[i]],
            }
            for i in clear
        ],
    }
    return json.dumps(value, separators=(",", ":")).encode()


def replay(test: bytes, scores: Callable[[np.ndarray], np.ndarray], size: tuple[int, int], name: str) -> SelfTest:
    """Answer the pictures of a test and compare; size: (height, width) that the file reads.

    Raises InputError where the test is damaged, or that of another file.
    """
    try:
        value: dict[str, Any] = json.loads(test)
        shape = (value["height"], value["width"], 3)
        kept = value["pictures"]
        small = np.stack([np.frombuffer(base64.b64decode(p["pixels"]), np.uint8).reshape(shape) for p in kept])
        classes = np.array([p["classes"] for p in kept], np.int64)
        expected = np.array([p["scores"] for p in kept], np.float32)
        factor, tolerance = int(value["factor"]), float(value.get("tolerance", TOLERANCE))
        is_embedding = value.get("answers") == EMBEDDING
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"the test inside {name!r} is damaged: {error}") from error
    if (shape[0] * factor, shape[1] * factor) != size:
        raise InputError(f"the test inside {name!r} is of pictures of another size than the file reads")
    answers = scores(spread(small, factor))
    if not (classes >= 0).all() or classes.max() >= answers.shape[-1] or classes.shape != expected.shape:
        raise InputError(f"the test inside {name!r} is of other classes than the file answers")
    found = np.take_along_axis(answers, classes, axis=-1)
    if is_embedding:
        missing = 1 - cosines(found, expected)
        return SelfTest(len(kept), int(np.sum(missing <= tolerance)), float(missing.max()), tolerance)
    agreeing = int(np.sum(answers.argmax(axis=-1) == classes[:, 0]))
    return SelfTest(len(kept), agreeing, float(np.abs(found - expected).max()), tolerance)
