"""What is wrong with a data set, all of it at once: damaged files, equal pictures, files in no class or an unknown one.

`open_images` stops at the first fault; this says what there is to repair before a long training.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from keras_resnet.errors import InputError
from keras_resnet.training.data import ARCHIVES, fault_of, members_of, open_images
from keras_resnet.training.images import DAMAGE, Images, Member, in_parallel, open_file
from keras_resnet.training.packing import check_shards, is_packed


class Finding(NamedTuple):
    """One thing that is wrong with a data set."""

    file: str
    kind: str  # "damaged", "duplicate", "unknown class" or "empty class"
    detail: str


class _Entry(NamedTuple):
    name: str
    folder: str  # "" for a file that is in no class folder
    item: Any  # a Path, a Member, or (Images, place)


def check(
    sources: Sequence[str | os.PathLike[str]], *, classes: Sequence[str] | None = None, progress: bool = False
) -> tuple[int, list[Finding]]:
    """How many files there are in all the sources together, and what is wrong with them.

    classes: names that a class folder may have; None: those of the first source. A picture is a duplicate where it has
    the very pixels of one before it, in whichever source: a test image that is also in the training set is found.
    Raises InputError for a source that is absent or cannot be listed.
    """
    entries: list[_Entry] = []
    findings: list[Finding] = []
    for source in sources:
        listed, folders = _list(Path(source))
        classes = folders if classes is None else classes
        findings += [Finding(str(source), "damaged", f"shard {name}") for name in _shards(Path(source))]
        filled = {entry.folder for entry in listed}
        for folder in folders:
            if folder not in classes:
                findings.append(Finding(f"{source}: {folder}", "unknown class", f"none of {len(classes)} classes"))
            if folder not in filled:
                findings.append(Finding(f"{source}: {folder}", "empty class", "it holds no file"))
        findings += [
            Finding(entry.name, "unknown class", "it is in no class folder") for entry in listed if not entry.folder
        ]
        entries += [entry for entry in listed if entry.folder]
    if not entries:
        raise InputError(f"data {', '.join(map(str, sources))} holds no file in a class folder")
    looked = in_parallel(_look, [entry.item for entry in entries])
    seen = tqdm(looked, desc="checking", total=len(entries), unit="image", disable=not progress)
    first: dict[bytes, _Entry] = {}
    for entry, (fault, digest) in zip(entries, seen, strict=True):
        if fault:
            findings.append(Finding(entry.name, "damaged", fault))
        elif (other := first.setdefault(digest, entry)) is not entry:
            elsewhere = "" if other.folder == entry.folder else f", of another class ({other.folder})"
            findings.append(Finding(entry.name, "duplicate", f"same pixels as {other.name}{elsewhere}"))
    return len(entries), findings


def _list(source: Path) -> tuple[list[_Entry], list[str]]:
    """The files of a source, and the names of its class folders."""
    if source.is_dir() and not is_packed(source):
        paths = sorted(path for path in source.rglob("*") if not _is_hidden(path.relative_to(source)))
        folders = [path.name for path in paths if path.is_dir() and path.parent == source]
        files = [(path, path.relative_to(source).parts) for path in paths if not path.is_dir()]
        return [_Entry(str(path), parts[0] if len(parts) == 2 else "", path) for path, parts in files], folders
    if source.name.endswith(ARCHIVES) and source.is_file():
        members, empty = members_of(source)
        folders = sorted({folder for _, folder, _ in members} - {""} | set(empty))
        return [_Entry(str(m), folder, m) for _, folder, m in members], folders
    images = open_images(str(source))
    entries = [
        _Entry(images.name_of(place), images.classes[label], (images, place))
        for place, label in enumerate(images.labels)
    ]
    return entries, list(images.classes)


def _shards(source: Path) -> Iterable[str]:
    return check_shards(source) if source.is_dir() and is_packed(source) else []


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _look(item: Path | Member | tuple[Images, int]) -> tuple[str, bytes]:
    """What is wrong with a picture, "" for nothing, and a digest of its size and pixels."""
    try:
        if isinstance(item, (Path, Member)):
            if fault := fault_of(item, whole=False):
                return fault, b""
            with open_file(item) as image:
                pixels = np.asarray(image.convert("RGBA"))
        else:
            images, place = item
            pixels = np.asarray(images.picture(place).convert("RGBA"))
    except (InputError, *DAMAGE) as error:
        return str(error), b""
    return "", hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()
