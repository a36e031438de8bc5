"""Room for networks deeper than Python's recursion limit: Keras walks a graph one call a layer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

FRAMES_A_LAYER = 3  # one was seen; the rest is for what Keras calls on the way
RESERVE = 1000  # Python's own default: what the caller's stack, a notebook or pytest may already have used


@contextlib.contextmanager
def recursion_room(layers: int) -> Iterator[None]:
    """Let a graph of so many layers be walked; the limit that stood before is back afterwards, errors included."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, FRAMES_A_LAYER * layers + RESERVE))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
