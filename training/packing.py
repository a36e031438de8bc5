"""Images packed into TFRecord shards: any reader takes them one after another, `open_packed` in any order.

An index of numbers beside each shard says where each picture's bytes lie, so that nothing is parsed and a shard is
read like an archive. A shard that is there is not written again, so a packing that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from keras_resnet.errors import InputError, UsageError
from keras_resnet.files import check_space, replacing, write_json
from keras_resnet.training.images import DECODERS, Images, Member, open_file

INDEX = "index.json"
IMAGES_PER_SHARD = 1000
HEADER_BYTES, FOOTER_BYTES = 12, 4  # of a record: its length and that number's checksum; the checksum of its content
VERSION = 1


def is_packed(folder: Path) -> bool:
    return (folder / INDEX).is_file()


def open_packed(folder: Path) -> Images:
    """The images of a folder that `pack` wrote, in the order and with the hash of those that were packed.

    Raises InputError where the index is damaged, or a shard is absent or of another length. That its bytes are the
    same is proved by `check_shards`.
    """
    index = _read_index(folder)
    members: list[Member] = []
    labels, places = [], []
    for shard in index["shards"]:
        path = folder / shard["file"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            raise InputError(f"shard {str(path)!r} is not there or not whole ({shard['bytes']:,} bytes): pack it again")
        try:
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
                names, starts, sizes = stored["names"].tolist(), stored["starts"].tolist(), stored["sizes"].tolist()
                labels.append(stored["labels"].astype(np.int64))
                places.append(stored["places"].astype(np.int64))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"the index of shard {str(path)!r} cannot be read ({error}): pack it again") from error
        members += [Member(path, *row) for row in zip(names, starts, sizes, strict=True)]
        if any(
            start < 0 or size < 0 or start + size > shard["bytes"] for start, size in zip(starts, sizes, strict=True)
        ):
            raise InputError(f"the index of shard {str(path)!r} points past its end: pack it again")
    order = np.argsort(np.concatenate(places))
    found = np.concatenate(labels)[order]
    classes = tuple(index["classes"])
    if len(members) != index["count"] or found.min() < 0 or found.max() >= len(classes):
        raise InputError(f"{str(folder / INDEX)!r} does not fit its shards: pack them again")
    return Images(
        folder.resolve().name, classes, found, [members[i] for i in order], open_file, known_hash=index["hash"]
    )


def check_shards(folder: Path) -> list[str]:
    """The shards whose bytes are not those that were written."""
    return [
        str(folder / shard["file"])
        for shard in _read_index(folder)["shards"]
        if not (folder / shard["file"]).is_file() or _hash_of(folder / shard["file"]) != shard["sha256"]
    ]


def pack(
    images: Images,
    folder: str | os.PathLike[str],
    *,
    images_per_shard: int = IMAGES_PER_SHARD,
    progress: bool = False,
) -> Path:
    """Write images into TFRecord shards of `folder`, several at a time; the same call goes on with what was stopped.

    A record is a tf.train.Example with `image/encoded` (a file's bytes as they are, a PNG of what has none),
    `image/class/label`, `image/class/text` and `image/filename`; they come in a shuffled order, so that a reader of
    consecutive records sees all classes. Every image is decoded once. Raises UsageError for a folder that holds
    something else, InputError for a damaged image, or where the disk has no room.
    """
    target = Path(folder)
    if images_per_shard < 1:
        raise UsageError(f"images_per_shard={images_per_shard!r} must be 1 or more")
    plan = hashlib.sha256(f"{VERSION} {images.hash} {images_per_shard}".encode()).hexdigest()
    _check_target(target, plan)
    check_space(target, sum(_size_of(item) for item in images.items))
    write_json(target / "packing.json", {"plan": plan})
    order = np.random.default_rng(0).permutation(len(images))
    count = math.ceil(len(images) / images_per_shard)
    parts = np.array_split(order, count)
    with (
        ThreadPoolExecutor(DECODERS) as pool,
        tqdm(total=len(images), desc="packing", unit="image", disable=not progress) as bar,
    ):
        names = [target / f"{number:05d}-of-{count:05d}.tfrecord" for number in range(count)]
        jobs = [pool.submit(_write_shard, images, name, part, bar) for name, part in zip(names, parts, strict=True)]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        shards = list(pool.map(_describe, names, parts))
    write_json(
        target / INDEX,
        {"version": VERSION, "classes": images.classes, "count": len(images), "hash": images.hash, "shards": shards},
    )
    return target


def _check_target(target: Path, plan: str) -> None:
    if target.is_dir() and any(target.iterdir()):
        try:
            before = json.loads((target / "packing.json").read_text(encoding="utf-8"))["plan"]
        except (OSError, ValueError, KeyError, TypeError):
            before = None
        if before != plan:
            held = "other images or shards of another size" if before else "something else"
            raise UsageError(
                f"output {str(target)!r} holds {held}: give a folder that is new, empty or of this packing"
            )
    elif target.exists() and not target.is_dir():
        raise UsageError(f"output {str(target)!r} is a file: give a folder")


def _write_shard(images: Images, path: Path, part: np.ndarray, bar: Any) -> None:
    """One shard and its index, which appear together; nothing where both are there."""
    if not (path.is_file() and path.with_suffix(".npz").is_file()):
        starts, sizes, names, position = [], [], [], 0
        with replacing(path, path.with_suffix(".npz")) as (shard, index):
            with tf.io.TFRecordWriter(str(shard)) as writer:
                for place in part.tolist():
                    content, name = _encoded(images, place), _name_of(images, place)
                    record = _example(content, int(images.labels[place]), images.classes, name)
                    writer.write(record)
                    starts.append(position + HEADER_BYTES + record.index(content))
                    sizes.append(len(content))
                    names.append(name)
                    position += HEADER_BYTES + len(record) + FOOTER_BYTES
                    bar.update()
            with index.open("wb") as file:
                np.savez(file, starts=starts, sizes=sizes, names=names, labels=images.labels[part], places=part)
    else:
        bar.update(len(part))


def _describe(path: Path, part: np.ndarray) -> dict[str, Any]:
    return {"file": path.name, "count": len(part), "bytes": path.stat().st_size, "sha256": _hash_of(path)}


def _example(content: bytes, label: int, classes: Sequence[str], name: str) -> bytes:
    def texts(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    feature = {
        "image/encoded": texts(content),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "image/class/text": texts(classes[label].encode()),
        "image/filename": texts(name.encode()),
    }
    return bytes(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True))


def _encoded(images: Images, place: int) -> bytes:
    """A file's own bytes, once it is proved to be a picture; a PNG of pixels that have no file."""
    picture, item = images.picture(place), images.items[place]
    if isinstance(item, (Path, Member)):
        return item.read_bytes()
    if isinstance(item, bytes):
        return item
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def _name_of(images: Images, place: int) -> str:
    item = images.items[place]
    if isinstance(item, (Path, Member)):
        return f"{images.classes[images.labels[place]]}/{Path(item.name).name}"
    return f"{images.classes[images.labels[place]]}/{place:08d}"


def _size_of(item: Any) -> int:
    if isinstance(item, Path):
        return item.stat().st_size
    if isinstance(item, Member):
        return item.size
    return len(item) if isinstance(item, bytes) else int(item.nbytes)


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        shards, classes = index["shards"], index["classes"]
        plain = all(Path(shard["file"]).name == shard["file"] and isinstance(shard["bytes"], int) for shard in shards)
        right = index["version"] == VERSION and shards and plain and all(isinstance(name, str) for name in classes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} is no index of packed images ({error!r}): pack them again") from error
    if not right:
        raise InputError(f"{str(path)!r} is no index of packed images of version {VERSION}: pack them again")
    return dict(index)
