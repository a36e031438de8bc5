"""Writing that appears whole or not at all. Every file and folder of ours that others may read goes through here."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_resnet.errors import InputError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial-"  # how the folders begin that a write takes place in
YOUNG_S = 10.0  # for which such a folder is left alone: its writer may not have locked it yet


@contextlib.contextmanager
def replacing(*paths: str | os.PathLike[str]) -> Iterator[list[Path]]:
    """Temporary names for files or folders that shall appear together: written inside, moved into place at the end.

    All paths lie in one folder, which is made if it is missing; what stood at a path before is replaced. On an error
    or Ctrl-C inside, nothing changes and nothing stays; what a killed process left there goes with the next write.
    """
    targets = [Path(path) for path in paths]
    folder = targets[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    scratch = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
    held = lock(scratch)
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
        if held is not None:
            os.close(held)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left half-written in a folder, others may be writing to it meanwhile.

    A writer holds a lock on its own, which ends with its process however that ends. Where there are no such locks, on
    Windows, nothing is removed.
    """
    if fcntl is None:
        return
    for path in folder.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError):  # it has gone, or is being written to
            if time.time() - path.stat().st_mtime > YOUNG_S and (handle := lock(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(handle)


def lock(folder: Path) -> int | None:
    """The system's lock on a folder, to be closed; None where there are no such locks.

    It ends with this process, however that ends, and leaves no file. Raises BlockingIOError where another one has it.
    """
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    return handle


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all, in UTF-8."""
    with replacing(path) as (scratch,):
        scratch.write_text(text, encoding="utf-8")


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as (scratch,):
        scratch.write_bytes(content)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys as comma-separated values, the keys first, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def check_file(path: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """The path of a file that can be written, before the work for it begins.

    Raises UsageError for another suffix, InputError for a place that cannot be written.
    """
    target = Path(path)
    if target.suffix not in suffixes:
        raise UsageError(f"output {str(path)!r} must end in {' or '.join(map(repr, suffixes))}")
    existing = next((parent for parent in target.parents if parent.exists()), Path("."))
    if target.is_dir() or not existing.is_dir():
        raise InputError(
            f"output {str(path)!r} cannot be written: {str(target if target.is_dir() else existing)!r} is "
            f"a {'folder' if target.is_dir() else 'file'}"
        )
    if not os.access(existing, os.W_OK):
        raise InputError(f"output {str(path)!r} cannot be written: no permission in {str(existing)!r}")
    return target


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


def read_labels(path: str | None) -> list[str] | None:
    """The lines of a text file, a label each; None for none. Raises InputError for what is no text."""
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"--labels {path!r} is no text in UTF-8: write a class a line") from error
