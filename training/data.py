"""From a source to labelled images: every kind of source, checked before anything is returned."""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from huggingface_hub import constants
from PIL import Image
from tqdm import tqdm

from keras_resnet.errors import InputError, unknown
from keras_resnet.files import check_space, replacing
from keras_resnet.training import datasets
from keras_resnet.training.images import DAMAGE, Member, in_parallel, open_file
from keras_resnet.training.images import Images as Images
from keras_resnet.training.packing import is_packed, open_packed

ARCHIVES = (".tar", ".tar.gz", ".tgz")
CHUNK_BYTES = 1 << 24
POLICIES = ("error", "skip")
KINDS = (
    "'digits', 'cifar10', 'cifar100', 'tfds:NAME', a folder or .tar of class folders, a folder of packed images, "
    "or a .npz file"
)


Data: TypeAlias = str | os.PathLike[str] | Images | tf.data.Dataset


def open_images(source: Data, *, damaged: str = "error") -> Images:
    """Labelled images from a folder or `.tar` of class folders, or any of the sources below.

    "digits" comes with the package; "cifar10" and "cifar100" are keras.datasets', "tfds:NAME" is tensorflow-datasets'
    where that is installed: their training images, or another part as "cifar10@test", "tfds:beans@validation"; a
    folder of such a name is "./digits". A folder that `keras-resnet data pack` wrote; a `.npz` of arrays `images`,
    `labels` and perhaps `classes`. A `.tar` is read in place; a `.tar.gz` is unzipped once into a cache, which is said.
    A `tf.data.Dataset` of pairs (picture, label) is held in memory; Images come back as they are.

    damaged: what to do with a file that is no picture: "error", or "skip", which decodes every picture once to find
    all of them; `skipped` lists those left out. With "error" one that only decoding finds is named when it is decoded.

    Raises InputError where the source is absent, empty, has one class only, names of classes that cannot be told
    apart, or something that is no image.
    """
    if isinstance(source, Images):
        return source
    if damaged not in POLICIES:
        raise unknown("policy", damaged, POLICIES, where="damaged=")
    if isinstance(source, tf.data.Dataset):
        return _checked(datasets.open_dataset(source), "tf.data.Dataset")
    path = Path(source)
    if not str(source):
        raise InputError(f"data '' is empty: give {KINDS}")
    name, _, part = str(source).partition("@")
    if name in datasets.BY_NAME:
        images = datasets.BY_NAME[name](name, part)
    elif str(source).startswith(datasets.TFDS):
        images = datasets.open_tfds(name.removeprefix(datasets.TFDS), part)
    elif path.is_dir():
        images = open_packed(path) if is_packed(path) else _open_folder(path, damaged)
    elif path.suffix == ".npz" and path.is_file():
        images = _open_npz(path)
    elif path.name.endswith(ARCHIVES) and path.is_file():
        images = _open_archive(path, damaged)
    else:
        raise InputError(f"data {str(source)!r} is not there: give {KINDS}")
    return _checked(images, str(source))


def _checked(images: Images, name: str) -> Images:
    """The images themselves, of at least two classes that can be told apart; name: their source, for messages."""
    wrong = [c for c, n in Counter(images.classes).items() if not c.strip() or len(c.splitlines()) > 1 or n > 1]
    if wrong:
        raise InputError(f"data {name!r} has a class named {wrong[0]!r}: give each one name, on one line")
    if len(images.classes) < 2 or len(np.unique(images.labels)) < 2:
        raise InputError(
            f"data {name!r} has one class only ({', '.join(images.classes)}): "
            "a classifier needs at least two, one folder each"
        )
    return images


def _open_folder(folder: Path, damaged: str) -> Images:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise InputError(f"data folder {str(folder)!r} is empty: it must hold a folder of images for each class")
    files, labels = [], []
    for label, name in enumerate(classes):
        members = sorted(path for path in (folder / name).iterdir() if not path.name.startswith("."))
        if not members:
            raise InputError(f"class folder {str(folder / name)!r} is empty: put images in it or remove it")
        files += members
        labels += [label] * len(members)
    return _proved(folder.resolve().name, classes, labels, files, damaged)


def _open_archive(path: Path, damaged: str) -> Images:
    """The pictures of an archive, read in place; the folder that holds a picture is its class."""
    members, classes, roots = [], [], set()
    files, empty = members_of(path)
    for root, folder, member in files:
        if not folder:
            raise InputError(f"data {str(path)!r}: {member.name!r} is in no class folder: pack a folder for each class")
        members.append(member)
        classes.append(folder)
        roots.add(root)
    if not members:
        raise InputError(f"data {str(path)!r} is empty: it must hold a folder of images for each class")
    if len(roots) > 1:
        first, second = sorted(roots)[:2]
        raise InputError(
            f"data {str(path)!r} has class folders in {first or 'the top'!r} and in {second!r}: "
            "pack the folder that holds the class folders alone"
        )
    if empty:
        raise InputError(f"data {str(path)!r}: class folder {empty[0]!r} is empty: put images in it or remove it")
    names = sorted(set(classes))
    position = {name: i for i, name in enumerate(names)}
    order = sorted(range(len(members)), key=lambda i: (position[classes[i]], members[i].name))
    labels = [position[classes[i]] for i in order]
    return _proved(path.name.partition(".tar")[0], names, labels, [members[i] for i in order], damaged)


def members_of(path: Path) -> tuple[list[tuple[str, str, Member]], list[str]]:
    """The files of a `.tar` or `.tar.gz` of class folders, (where the folder lies, the folder, the file), and the names
    of class folders that are empty.

    Hidden files are left out. Raises InputError for what is no archive, is cut short, or holds other than files.
    """
    archive = path if path.suffix == ".tar" else _unzipped(path)
    try:
        with tarfile.open(archive, "r:") as tar:
            entries = list(tar)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(f"data {str(path)!r} is no archive that can be read: {error}") from error
    found, folders = [], []
    for entry in entries:
        *root, folder, name = ["", *entry.name.removeprefix("./").split("/")]
        if name.startswith("."):
            continue
        if entry.isdir():
            folders.append(("/".join([*root, folder]), name))
            continue
        if not entry.isreg() or entry.issparse():
            raise InputError(f"data {str(path)!r}: {entry.name!r} is a link or another special file: pack files alone")
        found.append(("/".join(root), folder, Member(archive, entry.name, entry.offset_data, entry.size)))
    if found and found[-1][2].offset + found[-1][2].size > archive.stat().st_size:
        raise InputError(f"data {str(path)!r} is cut short: {found[-1][2].name!r} goes past its end")
    filled = {(root, folder) for root, folder, _ in found if folder}
    roots = {root for root, _ in filled}
    return found, [name for root, name in folders if root in roots and (root, name) not in filled]


def _proved(
    name: str, classes: Sequence[str], labels: Sequence[int], items: Sequence[Path | Member], damaged: str
) -> Images:
    """The images whose files are pictures; of others the first is an error, or all are left out and listed."""
    whole = damaged == "skip"
    faults = []
    looked = in_parallel(partial(fault_of, whole=whole), items)
    shown = tqdm(looked, f"{name}: damaged images", len(items), unit="image", leave=False, disable=not whole)
    for item, fault in zip(items, shown, strict=True):
        if fault and not whole:
            raise InputError(f"{str(item)!r} {fault}, or leave it out (damaged='skip')")
        faults.append(fault)
    kept = [i for i, fault in enumerate(faults) if not fault]
    skipped = tuple(
        f"{classes[label]}/{Path(item.name).name} {fault}"
        for label, item, fault in zip(labels, items, faults, strict=True)
        if fault
    )
    images = Images(name, tuple(classes), np.asarray(labels, np.int64), items, open_file)
    if not skipped:
        return images
    print(f"{name}: {len(skipped)} of {len(items)} images are damaged and left out", file=sys.stderr)
    lost = np.setdiff1d(images.labels, images.labels[kept])
    if len(lost):
        raise InputError(f"data {name!r}: every image of class {classes[lost[0]]!r} is damaged; the first {skipped[0]}")
    return replace(images.take(kept, name), skipped=skipped)


def fault_of(item: Path | Member, *, whole: bool = True) -> str:
    """Why a file cannot be trained on, "" where nothing is wrong; whole: decode it, not only its first bytes."""
    try:
        with open_file(item) as image:
            mode = image.mode
            image.load() if whole else image.verify()
    except DAMAGE as error:
        return f"is not an image that can be read: remove or repair it ({error})"
    if mode.startswith(("I", "F")):  # Pillow would cut what is above 255
        return f"has more than 8 bits a channel (mode {mode}): save it with 8 bits"
    return ""


def _unzipped(path: Path) -> Path:
    """The archive in a `.tar.gz`, in a cache under a name that its path, size and date decide."""
    state = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    target = Path(constants.HF_ASSETS_CACHE, "keras_resnet", "archives", f"{key}.tar")
    if target.is_file():
        return target
    print(f"{path}: unzipped once, to {target}", file=sys.stderr)
    try:
        with replacing(target) as (scratch,), gzip.open(path) as packed, scratch.open("wb") as unpacked:
            while chunk := packed.read(CHUNK_BYTES):
                check_space(target.parent, len(chunk))
                unpacked.write(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"data {str(path)!r} cannot be unzipped: {error}") from error
    return target


def _open_npz(path: Path) -> Images:
    try:
        with np.load(path, allow_pickle=False) as data:
            images, labels = data["images"], data["labels"]
            classes = tuple(map(str, data["classes"])) if "classes" in data else ()
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"data {str(path)!r} is no .npz with arrays 'images' and 'labels': {error}") from error
    is_picture = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))
    if images.dtype != np.uint8 or not is_picture or not len(images):
        raise InputError(
            f"data {str(path)!r}: 'images' must be uint8 [n, height, width] or [n, height, width, 1, 3 or 4]; "
            f"it has {images.dtype} {images.shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
        raise InputError(
            f"data {str(path)!r}: 'labels' must be whole numbers, one an image; it has {labels.dtype} {labels.shape} "
            f"for {len(images)} images"
        )
    images = images[..., 0] if images.shape[3:] == (1,) else images  # grey
    labels = labels.reshape(-1).astype(np.int64)
    classes = classes or tuple(str(i) for i in range(int(labels.max()) + 1))
    if labels.min() < 0 or labels.max() >= len(classes) or len(np.unique(labels)) < len(classes):
        raise InputError(
            f"data {str(path)!r}: labels go from {labels.min()} to {labels.max()} with {len(np.unique(labels))} values "
            f"for {len(classes)} classes: every class must be there"
        )
    return Images(path.stem, classes, labels, list(images), Image.fromarray)
