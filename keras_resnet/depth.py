"""Room for networks deeper than Python's recursion limit: Keras walks a graph one call a layer."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

FRAMES_A_LAYER = 3  # one was seen; the rest is for what Keras calls on the way
RESERVE = 1000  # Python's own default: what the caller's stack, a notebook or pytest may already have used

_lock = threading.Lock()  # the limit is the whole process's: threads that need room at once share the widest
_wanted: list[int] = []
_before = 0


@contextlib.contextmanager
def recursion_room(layers: int) -> Iterator[None]:
    """Let a graph of so many layers be walked; the limit that stood before is back afterwards, errors included.

    In several threads at once it is back when the last of them leaves.
    """
    global _before
    need = FRAMES_A_LAYER * layers + RESERVE
    with _lock:
        if not _wanted:
            _before = sys.getrecursionlimit()
        _wanted.append(need)
        sys.setrecursionlimit(max(_before, *_wanted))
    try:
        yield
    finally:
        with _lock:
            _wanted.remove(need)
            # Lower only when nobody is inside: another thread may be deep already.
            if not _wanted:
                sys.setrecursionlimit(_before)
