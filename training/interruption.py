"""What ends a run from outside: SIGTERM, and a second trainer in the same folder."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from keras_resnet.errors import InputError
from keras_resnet.files import lock

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """The process was asked to end by SIGTERM; schedulers take its exit code, 143, for a reason to start it again."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Termination:
    """Whether SIGTERM has come; outside of `held_back` it raises Terminated where it comes."""

    def __init__(self) -> None:
        self.requested = False
        self._raises = True

    @contextlib.contextmanager
    def noticed(self) -> Iterator[Termination]:
        """Take SIGTERM; only the main thread can, and only behind a multi-worker strategy, which takes it too."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGTERM, self._take)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextlib.contextmanager
    def held_back(self, active: bool = True) -> Iterator[None]:
        """Inside, SIGTERM is remembered in `requested` and nothing more; not active: it raises there again."""
        before, self._raises = self._raises, not active
        try:
            if self._raises and self.requested:
                raise Terminated
            yield
        finally:
            self._raises = before

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._raises:
            raise Terminated


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other trainers out of a folder, which is made if it is missing, for as long as this process lives.

    Raises InputError where another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        handle = lock(folder)
    except BlockingIOError as error:
        raise InputError(
            f"run {str(folder)!r} is being trained by another process: wait for it, stop it, or give another folder"
        ) from error
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
