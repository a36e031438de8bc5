"""Thousands of damaged files of weights, loaded one after the other: `python -m tests.fuzzing START COUNT KIND...`.

A process of its own, so that whoever starts it sees a crash or an endless loop. Prints a line of JSON a kind: how many
were refused with one of our errors, how many loaded, and the seeds of those that brought up anything else.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import h5py
import numpy as np

from keras_resnet import build, load_weights
from keras_resnet.conversion import save_weights_as, tensors_as
from keras_resnet.errors import KerasResnetError
from tests.references import fill

LONGEST_S = 20  # of one file, on a busy machine; a good one takes 0.1 s
EXTREMES = (b"\xff" * 8, b"\x00" * 7 + b"\x80", b"\x7f" + b"\xff" * 7, b"\x01" + bytes(7))  # numbers that lie


def save_as_keras_applications(model: Any, path: Path) -> None:
    """The HDF5 form of the files of keras.applications."""
    with h5py.File(path, "w") as file:
        groups: dict[str, list[bytes]] = {}
        for name, value in tensors_as(model, "keras_v1").items():
            layer = name.split("/")[0]
            file[f"{layer}/{name}:0"] = value
            groups.setdefault(layer, []).append(f"{name}:0".encode())
        file.attrs["layer_names"] = [layer.encode() for layer in groups]
        for layer, names in groups.items():
            file[layer].attrs["weight_names"] = names


WRITERS: Mapping[str, Callable[[Any, Path], None]] = {
    "safetensors": save_weights_as,
    "pth": save_weights_as,
    "weights.h5": lambda model, path: model.save_weights(path),
    "h5": save_as_keras_applications,
    "keras": lambda model, path: model.save(path),
}


def network(kind: str) -> Any:
    variant = "resnet50_v1" if kind == "h5" else "resnet18"
    return fill(build(variant, depths=(1, 1), widths=(4, 8), classes=3, input_shape=(32, 32, 3)))


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to five places changed, half of them near the start, where headers are."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        size = len(found)
        if size < 16:
            break
        at = int(rng.integers(size if rng.random() < 0.5 else min(size, 4096)))
        length = int(rng.integers(1, 65))
        match rng.integers(8):
            case 0:
                found[at] = rng.integers(256)
            case 1:
                found[at] ^= 1 << int(rng.integers(8))
            case 2:
                found[at : at + length] = bytes(len(found[at : at + length]))
            case 3:
                found[at : at + 8] = EXTREMES[rng.integers(4)][: len(found[at : at + 8])]
            case 4:
                del found[at : at + length]
            case 5:
                found[at:at] = rng.bytes(length)
            case 6:
                other = int(rng.integers(size))
                found[at : at + length] = found[other : other + length]
            case 7 if rng.random() < 0.3:
                del found[at:]
    return bytes(found)


def mutate_member(data: bytes, rng: np.random.Generator) -> bytes:
    """The same inside one file of a zip archive, whose checksums are then right."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
        names = old.namelist()
        telling = [name for name in names if name.endswith((".json", ".pkl", ".h5"))]
        chosen = (telling if rng.random() < 0.7 else names)[rng.integers(len(telling))]
        for name in names:
            new.writestr(name, mutate(old.read(name), rng) if name == chosen else old.read(name))
    return packed.getvalue()


def damaged(data: bytes, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    inside = data.startswith(b"PK") and rng.random() < 0.6
    return mutate_member(data, rng) if inside else mutate(data, rng)


def fuzz(kind: str, seeds: range, folder: Path) -> dict[str, Any]:
    """What damaged files of one kind did to a network, which loads the good file afterwards as before."""
    model, good, bad = network(kind), folder / f"good.{kind}", folder / f"bad.{kind}"
    WRITERS[kind](model, good)
    data, answer = good.read_bytes(), [weight.numpy() for weight in model.weights]
    counts: Counter[str] = Counter()
    others: dict[str, int] = {}
    for seed in seeds:
        bad.write_bytes(damaged(data, seed))
        faulthandler.dump_traceback_later(LONGEST_S, exit=True)
        try:
            load_weights(model, bad)
            counts["loaded"] += 1
        except KerasResnetError:
            counts["refused"] += 1
        except Exception as error:
            others.setdefault(f"{type(error).__name__}: {error}"[:200], seed)
        faulthandler.cancel_dump_traceback_later()
    load_weights(model, good)
    same = all(np.array_equal(a, b.numpy()) for a, b in zip(answer, model.weights, strict=True))
    return {"kind": kind, **counts, "others": others, "good file loads": same}


def fuzz_file(good: Path, seeds: range, verbs: Mapping[str, Callable[[Path], Any]], folder: Path) -> Counter[str]:
    """How often each verb refused a damaged copy of a file or folder; anything but one of our errors goes through."""
    refused: Counter[str] = Counter()
    bad = folder / good.name
    parts = sorted(part.relative_to(good) for part in good.rglob("*") if part.is_file()) or [Path()]
    for seed in seeds:
        if good.is_dir():
            shutil.rmtree(bad, ignore_errors=True)
            shutil.copytree(good, bad)
        part = parts[seed % len(parts)]
        (bad / part).write_bytes(damaged((good / part).read_bytes(), seed))
        for verb, run in verbs.items():
            try:
                run(bad)
            except KerasResnetError:
                refused[verb] += 1
    return refused


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of Keras and torch, about what is not as they know it
    start, count, *kinds = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        for kind in kinds:
            print(json.dumps(fuzz(kind, range(int(start), int(start) + int(count)), Path(scratch))), flush=True)
