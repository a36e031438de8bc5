"""Writing that appears whole or not at all. Every file and folder of ours that others may read goes through here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_resnet.errors import InputError


@contextlib.contextmanager
def replacing(*paths: str | os.PathLike[str]) -> Iterator[list[Path]]:
    """Temporary names for files or folders that shall appear together: written inside, moved into place at the end.

    All paths lie in one folder, which is made if it is missing; what stood at a path before is replaced. On an error
    or Ctrl-C inside, nothing changes and nothing stays.
    """
    targets = [Path(path) for path in paths]
    folder = targets[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        written = [scratch / target.name for target in targets]
        yield written
        for path in written:
            path.stat()  # all were written, before the first one moves
            _sync(path)
        with _uninterrupted():
            for path, target in zip(written, targets, strict=True):
                if target.is_dir() and not target.is_symlink():
                    os.replace(target, scratch / f"{target.name}.old")  # a folder cannot be renamed over another
                os.replace(path, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all, in UTF-8."""
    with replacing(path) as (scratch,):
        scratch.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def check_space(folder: str | os.PathLike[str], needed_bytes: int) -> None:
    """Raise InputError where the disk of `folder`, which need not exist yet, has less than `needed_bytes` free."""
    existing = next(p for p in (Path(folder).absolute(), *Path(folder).absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise InputError(
            f"no disk space for {str(folder)!r}: {free / 1e6:,.0f} MB free, about {needed_bytes / 1e6:,.0f} MB needed; "
            "free some or choose another folder"
        )


def _sync(path: Path) -> None:
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back for the few renames, so that files that belong together appear together."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if caught:
            raise KeyboardInterrupt
