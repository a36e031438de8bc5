"""From our weights to those of other libraries and back: pure functions on names and arrays, numpy only.

From a Spec and a scheme of `schemes`, `table` lists every weight with its name there; `to_ours` and `from_ours` carry
tensors across, whole or not at all. Which scheme tensors have is left to `recognition`, their files to `weights`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from keras_resnet.errors import InputError, UsageError
from keras_resnet.schemes import name_of, plain_names, scheme_of
from keras_resnet.specs import CONVOLUTIONS, EXPANSION, Spec

Shape = tuple[int, ...]
Weights = dict[str, dict[str, np.ndarray]]  # ours: by layer, then variable


class Transform(NamedTuple):
    """How one kind of tensor changes on its way; a function each for values in, values out, and shapes out."""

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[Shape], Shape]


_SAME = Transform(lambda a: a, lambda a: a, lambda s: s)
TRANSFORMS: Mapping[str, Transform] = {
    "same": _SAME,
    "fold": _SAME,  # and then taken off the moving mean
    # PyTorch's (out, in / groups, height, width), ours (height, width, in / groups, out).
    "kernel": Transform(
        lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1), lambda s: (s[3], s[2], s[0], s[1])
    ),
    "dense": Transform(lambda a: a.T, lambda a: a.T, lambda s: s[::-1]),
    "dense_1x1": Transform(lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None], lambda s: (*s[::-1], 1, 1)),
}


@dataclass(frozen=True)
class Entry:
    """One weight in both worlds."""

    layer: str  # ours
    variable: str  # ours: kernel, bias, gamma, beta, moving_mean, moving_variance
    name: str  # theirs
    shape: Shape  # theirs
    transform: str  # a key of TRANSFORMS
    required: bool = True


def layout(spec: Spec, *, channels: int = 3, include_top: bool = True) -> Iterator[tuple[str, str, Shape]]:
    """(layer, variable, shape) of every weight of the network that `models.build` makes of a spec, block by block."""

    def conv(layer: str, kernel: int, before: int, behind: int) -> Iterator[tuple[str, str, Shape]]:
        yield layer, "kernel", (kernel, kernel, before, behind)
        if layer.endswith((*spec.conv_bias, "gate")):
            yield layer, "bias", (behind,)

    def bn(layer: str, width: int) -> Iterator[tuple[str, str, Shape]]:
        for variable in ("gamma", "beta", "moving_mean", "moving_variance"):
            yield layer, variable, (width,)

    before = spec.widths[0]
    yield from conv("stem_conv", 7 if spec.stem == "imagenet" else 3, channels, before)
    if not spec.preactivation:
        yield from bn("stem_bn", before)
    for name, width in _blocks(spec):
        behind = width * EXPANSION[spec.block]
        if spec.shortcut == "C" or (spec.shortcut == "B" and before != behind):
            yield from conv(f"{name}_shortcut_conv", 1, before, behind)
            if spec.shortcut_bn:
                yield from bn(f"{name}_shortcut_bn", behind)
        inner = int(width * spec.width_per_group / 64) * spec.groups
        basic, bottleneck = ((width, 3, 1),) * 2, ((inner, 1, 1), (inner, 3, spec.groups), (behind, 1, 1))
        wide = before
        for j, (filters, kernel, groups) in enumerate(basic if spec.block == "basic" else bottleneck, start=1):
            norm = bn(f"{name}_bn{j}", wide if spec.preactivation else filters)
            convolution = conv(f"{name}_conv{j}", kernel, wide // groups, filters)
            yield from chain(*((norm, convolution) if spec.preactivation else (convolution, norm)))
            wide = filters
        if spec.shortcut == "highway":
            yield from conv(f"{name}_gate", 1, behind, behind)
        before = behind
    if spec.preactivation:
        yield from bn("head_bn", before)
    if include_top:
        yield "head_dense", "kernel", (before, spec.classes)
        yield "head_dense", "bias", (spec.classes,)


def _blocks(spec: Spec) -> Iterator[tuple[str, int]]:
    for s, (depth, width) in enumerate(zip(spec.depths, spec.widths, strict=True), start=1):
        for b in range(1, depth + 1):
            yield f"stage{s}_block{b}", width


def table(spec: Spec, scheme: str, *, channels: int = 3, include_top: bool = True) -> list[Entry]:
    """Every weight of a network with its name in a scheme, and the biases that the scheme's files may have besides.

    Raises UsageError for an unknown scheme, and for a network with a layer that the scheme has no name for.
    """
    names = scheme_of(scheme)
    weights = list(layout(spec, channels=channels, include_top=include_top))
    layers = {layer for layer, _, _ in weights}
    entries = []
    for layer, variable, shape in weights:
        name = name_of(names, layer, variable)
        if not name:
            raise UsageError(f"naming {scheme!r} has no name for layer {layer!r} of this network: use another naming")
        transform = "same"
        if variable == "kernel" and layer == "head_dense" and not names.in_keras:
            transform = "dense_1x1" if names.head_is_conv else "dense"
        elif variable == "kernel" and not names.in_keras:
            transform = "kernel"
        entries.append(Entry(layer, variable, name, TRANSFORMS[transform].shape(shape), transform))
        norm = _behind(layer, spec.preactivation)
        if variable == "kernel" and norm in layers and not layer.endswith(spec.conv_bias):
            bias = name_of(names, layer, "bias")
            entries.append(Entry(norm, "moving_mean", bias, shape[-1:], "fold", required=names.conv_biases))
    return entries


def _behind(layer: str, preactivation: bool) -> str:
    """The name of the BatchNormalization that reads a convolution alone, if there is one."""
    if not preactivation:
        return layer.replace("conv", "bn") if "conv" in layer else ""
    match = re.fullmatch(r"(.+_)conv(\d)", layer)
    return f"{match[1]}bn{int(match[2]) + 1}" if match else ""


def first(items: Sequence[str], count: int = 3) -> str:
    """The first few of a list, for a message."""
    return ", ".join(items[:count]) + (", ..." if len(items) > count else "")


def check(entries: list[Entry], plain: Mapping[str, str], shapes: Mapping[str, Shape], where: str) -> None:
    """Raise InputError unless tensors are those of the entries, all of them and no other, in the same shapes.

    plain: names as in `plain_names`; shapes: by the plain names that the entries have.
    """
    wanted = {entry.name: entry for entry in entries}
    missing = [entry.name for entry in entries if entry.required and entry.name not in plain]
    unexpected = [old for name, old in plain.items() if name not in wanted]
    misshapen = [
        f"{old} {shapes[name]} instead of {wanted[name].shape}"
        for name, old in plain.items()
        if name in wanted and shapes[name] != wanted[name].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(found.values()):
        text = "; ".join(f"{len(items)} {what} ({first(items)})" for what, items in found.items() if items)
        raise InputError(f"{where} does not fit the network: {text}")


def to_ours(
    tensors: Mapping[str, np.ndarray],
    spec: Spec,
    scheme: str,
    *,
    channels: int = 3,
    include_top: bool = True,
    where: str = "the file",
) -> Weights:
    """Another library's tensors as the weights of our network, float32, by layer and variable; views where possible.

    Arguments and errors as those of `values_of_ours`.
    """
    weights: Weights = {}
    options: dict[str, Any] = {"channels": channels, "include_top": include_top, "where": where}
    for layer, variable, values in values_of_ours(tensors, spec, scheme, **options):
        weights.setdefault(layer, {})[variable] = values
    return weights


def values_of_ours(
    tensors: Mapping[str, np.ndarray],
    spec: Spec,
    scheme: str,
    *,
    channels: int = 3,
    include_top: bool = True,
    where: str = "the file",
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(layer, variable, float32 values) one at a time, so that a large network need not be in memory twice.

    Every tensor is used and every weight filled. A bias in front of a BatchNormalization is taken off its moving mean,
    which is exact. where: what the tensors came from, for errors. Before the first value each tensor was read once.
    Raises InputError that lists what is missing, unexpected or of another shape; UsageError as `table`.
    """
    entries = table(spec, scheme, channels=channels, include_top=include_top)
    plain = plain_names(tensors)
    wanted, shapes = {entry.name for entry in entries}, {}
    for name in wanted & plain.keys():
        tensor = tensors[plain[name]]
        shapes[name] = tuple(tensor.shape)
        if tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
            raise InputError(
                f"tensor {plain[name]!r} of {where} is of {tensor.dtype}: floating point numbers are needed"
            )
    check(entries, plain, shapes, where)

    def values(entry: Entry) -> np.ndarray:
        return TRANSFORMS[entry.transform].read(tensors[plain[entry.name]].astype(np.float32, copy=False))

    folded = {entry.layer: entry for entry in entries if entry.transform == "fold" and entry.name in plain}
    for entry in entries:
        if entry.transform == "fold":
            continue
        bias = folded.get(entry.layer) if entry.variable == "moving_mean" else None
        yield entry.layer, entry.variable, values(entry) - values(bias) if bias else values(entry)


def differences(spec: Spec, scheme: str) -> list[str]:
    """In what a network differs from those that the code of a scheme's library computes; [] where it is one of them.

    >>> differences(spec_of("resnet50_v1"), "torchvision")
    ["stride_on='1x1' where torchvision has '3x3'", 'epsilon=1.001e-05 where torchvision has 1e-05']
    """
    ours = computed(spec)
    return [
        f"{field}={getattr(spec, field)!r} where {scheme} has {' or '.join(map(repr, values))}"
        for field, values in scheme_of(scheme).computes.items()
        if field in ours and ours[field] not in map(_unordered, values)
    ]


def computed(spec: Spec) -> dict[str, Any]:
    """The fields of a spec that decide what its network computes, in a form that compares."""
    idle = {"input_size", "momentum", "zero_last_gamma", "stochastic_depth", "dropout", "gate_bias"}
    idle |= {"stride_on"} if spec.block == "basic" else set()
    idle |= {"shortcut_bn"} if spec.shortcut not in ("B", "C") else set()
    idle |= {"pool_padding"} if spec.stem != "imagenet" or not spec.preactivation else set()
    return {f.name: _unordered(getattr(spec, f.name)) for f in fields(Spec) if f.name not in idle}


def _unordered(value: Any) -> Any:
    """The names in conv_bias are a set, in whatever order they stand."""
    return frozenset(value) if isinstance(value, tuple) and set(value) <= set(CONVOLUTIONS) else value


def from_ours(weights: Mapping[str, Mapping[str, np.ndarray]], spec: Spec, scheme: str) -> dict[str, np.ndarray]:
    """The weights of our network as another library's tensors, ready for its own loader, in the order of the network.

    With or without "head_dense", any number of input channels. Biases that ours has not are zeros.
    Raises UsageError where that library would compute another function with them, InputError where weights are missing
    or do not fit the spec.
    """
    if others := differences(spec, scheme):
        raise UsageError(f"naming={scheme!r} cannot carry this network: {'; '.join(others)}")
    given = {f"{layer}/{variable}": array for layer, parts in weights.items() for variable, array in parts.items()}
    stem = given.get("stem_conv/kernel", np.zeros((0, 0, 3, 0)))
    ours: dict[str, Any] = {"include_top": "head_dense" in weights, "channels": stem.shape[2]}
    same = [Entry(layer, v, f"{layer}/{v}", shape, "same") for layer, v, shape in layout(spec, **ours)]
    shapes = {name: tuple(array.shape) for name, array in given.items()}
    check(same, {name: name for name in given}, shapes, where="the dict of weights")
    names = scheme_of(scheme)
    tensors: dict[str, np.ndarray] = {}
    for entry in table(spec, scheme, **ours):
        if entry.transform == "fold" and entry.required:
            tensors[names.prefix + entry.name] = np.zeros(entry.shape, np.float32)
        elif entry.transform != "fold":
            array = TRANSFORMS[entry.transform].write(given[f"{entry.layer}/{entry.variable}"])
            tensors[names.prefix + entry.name] = np.ascontiguousarray(array)
        if entry.variable == "moving_variance" and names.counts_batches:
            counter = entry.name.replace("running_var", "num_batches_tracked")
            tensors[names.prefix + counter] = np.zeros((), np.int64)
    return tensors
