"""From a source to labelled images: every kind of source, checked before anything is returned."""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import io
import os
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from huggingface_hub import constants
from PIL import Image

from keras_resnet.errors import InputError
from keras_resnet.files import check_space, replacing
from keras_resnet.training.images import Images as Images
from keras_resnet.training.images import Member

DIGITS_SIDE = 32
ARCHIVES = (".tar", ".tar.gz", ".tgz")
CHUNK_BYTES = 1 << 24
KINDS = "'digits', a folder or .tar of class folders, or a .npz file"


def open_images(source: str | os.PathLike[str] | Images) -> Images:
    """Labelled images from "digits" (embedded), a folder or `.tar` of class folders, or a `.npz` of arrays.

    A `.tar` is read in place; a `.tar.gz` is unzipped once into a cache, which is said. The arrays of a `.npz` are
    `images`, `labels` and perhaps `classes`. Images come back as they are. Raises InputError where the source is
    absent, empty, has one class only, names of classes that cannot be told apart, or something that is no image.
    """
    if isinstance(source, Images):
        return source
    path = Path(source)
    if not str(source):
        raise InputError(f"data '' is empty: give {KINDS}")
    if str(source) == "digits":
        images = _open_digits()
    elif path.is_dir():
        images = _open_folder(path)
    elif path.suffix == ".npz" and path.is_file():
        images = _open_npz(path)
    elif path.name.endswith(ARCHIVES) and path.is_file():
        images = _open_archive(path)
    else:
        raise InputError(f"data {str(source)!r} is not there: give {KINDS}")
    wrong = [c for c in images.classes if not c.strip() or len(c.splitlines()) > 1 or images.classes.count(c) > 1]
    if wrong:
        raise InputError(f"data {str(source)!r} has a class named {wrong[0]!r}: give each one name, on one line")
    if len(images.classes) < 2 or len(np.unique(images.labels)) < 2:
        raise InputError(
            f"data {str(source)!r} has one class only ({', '.join(images.classes)}): "
            "a classifier needs at least two, one folder each"
        )
    return images


def _open_digits() -> Images:
    with (
        importlib.resources.files("keras_resnet").joinpath("assets/digits.npz").open("rb") as file,
        np.load(file) as data,
    ):
        images, labels = data["images"], data["labels"]

    def decode(small: np.ndarray) -> Image.Image:
        grey = np.round(small * (255 / 16)).astype(np.uint8)
        return Image.fromarray(grey).resize((DIGITS_SIDE, DIGITS_SIDE), Image.Resampling.BICUBIC).convert("RGB")

    return Images("digits", tuple("0123456789"), labels.astype(np.int64), list(images), decode)


def _open_folder(folder: Path) -> Images:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise InputError(f"data folder {str(folder)!r} is empty: it must hold a folder of images for each class")
    files, labels = [], []
    for label, name in enumerate(classes):
        members = sorted(path for path in (folder / name).iterdir() if not path.name.startswith("."))
        if not members:
            raise InputError(f"class folder {str(folder / name)!r} is empty: put images in it or remove it")
        for path in members:
            _check_image(path)
            files.append(path)
            labels.append(label)
    return Images(folder.resolve().name, tuple(classes), np.asarray(labels, np.int64), files, _read)


def _open_archive(path: Path) -> Images:
    """The pictures of an archive, read in place; the folder that holds a picture is its class."""
    archive = path if path.suffix == ".tar" else _unzipped(path)
    try:
        with tarfile.open(archive, "r:") as tar:
            files = [entry for entry in tar if not entry.isdir()]
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(f"data {str(path)!r} is no archive that can be read: {error}") from error
    members, classes, roots = [], [], set()
    for entry in files:
        *root, folder, name = ["", *entry.name.removeprefix("./").split("/")]
        if name.startswith("."):
            continue
        if not entry.isreg() or entry.issparse():
            raise InputError(f"data {str(path)!r}: {entry.name!r} is a link or another special file: pack files alone")
        if not folder:
            raise InputError(f"data {str(path)!r}: {entry.name!r} is in no class folder: pack a folder for each class")
        members.append(Member(archive, entry.name, entry.offset_data, entry.size))
        classes.append(folder)
        roots.add("/".join(root))
    if not members:
        raise InputError(f"data {str(path)!r} is empty: it must hold a folder of images for each class")
    if len(roots) > 1:
        first, second = sorted(roots)[:2]
        raise InputError(
            f"data {str(path)!r} has class folders in {first or 'the top'!r} and in {second!r}: "
            "pack the folder that holds the class folders alone"
        )
    if members[-1].offset + members[-1].size > archive.stat().st_size:
        raise InputError(f"data {str(path)!r} is cut short: {members[-1].name!r} goes past its end")
    for member in members:
        _check_image(member)
    names = sorted(set(classes))
    position = {name: i for i, name in enumerate(names)}
    order = sorted(range(len(members)), key=lambda i: (position[classes[i]], members[i].name))
    labels = np.asarray([position[classes[i]] for i in order], np.int64)
    return Images(path.name.partition(".tar")[0], tuple(names), labels, [members[i] for i in order], _read)


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


def _check_image(item: Path | Member) -> None:
    try:
        with Image.open(_file_of(item)) as image:
            mode = image.mode
            image.verify()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{str(item)!r} is not an image that can be read: remove or repair it ({error})") from error
    if mode.startswith(("I", "F")):  # Pillow would cut what is above 255
        raise InputError(f"{str(item)!r} has more than 8 bits a channel (mode {mode}): save it with 8 bits")


def _read(item: Path | Member) -> Image.Image:
    try:
        with Image.open(_file_of(item)) as image:
            image.load()
            return image
    except (OSError, SyntaxError) as error:
        raise InputError(f"{str(item)!r} cannot be decoded: remove or repair it ({error})") from error


def _file_of(item: Path | Member) -> Path | io.BytesIO:
    return item if isinstance(item, Path) else io.BytesIO(item.read_bytes())
