"""Which network tensors are, and who named them, found from their names and shapes alone. numpy only.

Takes a dict of tensors; gives a scheme of `naming`, or the Spec with what the tensors cannot tell said in words.
Refuses what this package does not build, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from keras_resnet.errors import InputError, UsageError
from keras_resnet.naming import Shape, check, computed, first, layout, table
from keras_resnet.schemes import SCHEMES, name_of, plain_names
from keras_resnet.specs import EXPANSION, VARIANTS, Spec

STEM_KERNELS = {(7, 7): "imagenet", (3, 3): "small"}

_FOREIGN = (
    (r"^(conv1|stem)\.\d+\.|^stem\.conv\d\.", "a stem of several convolutions (ResNet-C, -D, -T)"),
    (r"\.downsample\.2\.", "an average pool in the shortcut (ResNet-D)"),
    (r"\.(se|se_module|se_layer|eca|attn|cbam)\.", "attention in the blocks (squeeze-and-excitation and the like)"),
    (r"\b(backbone|fpn|rpn|roi_heads)\.", "a detector or segmenter"),
    (r"(scale|zero_point|_packed_params)$", "quantised weights"),
    (r"^features\.", "a network of another family (VGG, DenseNet, MobileNet)"),
)


@dataclass(frozen=True)
class Found:
    """What `spec_from` read from tensors; its text is one line for the user."""

    spec: Spec
    variant: str | None  # the row of specs.VARIANTS, but for classes and stem; None: in no row
    scheme: str
    classes: int | None  # None: no classifier, and spec.classes says nothing
    channels: int
    notes: tuple[str, ...]  # what tensors cannot tell, and what was taken

    def __str__(self) -> str:
        head = f"{self.classes} classes" if self.classes else "no classifier"
        name = self.variant or f"a {self.spec.block} network of depths {self.spec.depths}, widths {self.spec.widths}"
        return f"{name}, {head}, {self.channels} channels, stem {self.spec.stem!r}, {self.scheme} names"


def recognise(names: Iterable[str], *, where: str = "the file") -> str:
    """The scheme that tensor names follow: its stem, its first block and a normalisation must be there.

    "torchvision" and "akamaster" differ in classifier and projections only; of a network with neither, the first.
    Raises InputError that says what was seen, for names of no scheme and of two.
    """
    plain = plain_names(names)
    marks: dict[str, int] = {}
    for key, scheme in SCHEMES.items():
        norm = "stem_bn" if scheme.stem_bn else "head_bn"
        anchors = [("stem_conv", "kernel"), ("stage1_block1_conv1", "kernel")]
        anchors += [("stage1_block1_bn1", "moving_mean"), (norm, "moving_mean")]
        if all(name_of(scheme, layer, variable) in plain for layer, variable in anchors):
            projection = name_of(scheme, "stage1_block1_shortcut_conv", "kernel").removeprefix(scheme.block(1, 1))
            own = (name_of(scheme, "head_dense", "kernel"), projection)
            marks[key] = sum(any(name.endswith(mark) for name in plain) for mark in own)
    best = [key for key, count in marks.items() if count == max(marks.values())]
    if len(best) == 1 or (best and not marks[best[0]]):
        return best[0]
    seen = f"{where} has {len(plain)} tensors ({first(list(plain.values()))})"
    if best:
        raise InputError(f"{seen}: ambiguous, they are named as in {' and in '.join(best)}; remove those of one")
    known = ", ".join(f"{key} ({name_of(row, 'stage1_block1_conv1', 'kernel')})" for key, row in SCHEMES.items())
    raise InputError(f"{seen}: names of no network that is known here{_hint(plain)}; known are {known}")


def spec_from(tensors: Mapping[str, np.ndarray], *, where: str = "the file") -> Found:
    """The network that tensors belong to: depths, block, widths, groups, shortcut, stem, classes, input channels.

    Every tensor must have its place in it. Strides, paddings and epsilon leave no trace in tensors: they are taken as
    the scheme's library has them, and where another network has the same tensors, `notes` says which was taken.
    Raises InputError where the names are of no scheme or the tensors of no network that this package builds.
    """
    scheme = recognise(tensors, where=where)
    plain = plain_names(tensors)
    shapes = {name: tuple(tensors[old].shape) for name, old in plain.items()}
    classes = _shape(scheme, shapes, "head_dense")
    try:
        spec, channels = _read(scheme, shapes, where)
        spec = replace(spec, classes=classes[-1] if classes else spec.classes)
        check(table(spec, scheme, channels=channels, include_top=bool(classes)), plain, shapes, where)
    except UsageError as error:  # the values make no Spec
        raise InputError(f"{where} has the tensors of no network: {error}{_hint(plain)}") from error
    except InputError as error:
        raise InputError(f"{error}{_hint(plain)}") from error
    variant = variant_of(spec)
    if variant:
        row = VARIANTS[variant]
        size = spec.input_size if spec.stem != row.stem else row.input_size
        spec = replace(row, stem=spec.stem, classes=spec.classes, input_size=size)
    notes = tuple(_notes(spec, scheme, variant))
    return Found(spec, variant, scheme, classes[-1] if classes else None, channels, notes)


def _shape(scheme: str, shapes: Mapping[str, Shape], layer: str) -> Shape:
    """The shape of a kernel with Keras' axes, of a convolution or a dense layer; () where the tensors have none."""
    shape = shapes.get(name_of(SCHEMES[scheme], layer, "kernel"), ())
    if SCHEMES[scheme].in_keras or not shape:
        return shape
    return (*shape[2:], *reversed(shape[:2]))


def _read(scheme: str, shapes: Mapping[str, Shape], where: str) -> tuple[Spec, int]:
    """The spec and the input channels that shapes tell; what they do not tell is the scheme's."""

    def kernel(layer: str) -> tuple[int, int, int, int]:
        shape = _shape(scheme, shapes, layer)
        if len(shape) != 4 or not all(shape):
            name = name_of(SCHEMES[scheme], layer, "kernel")
            seen = f"{name} has shape {shapes[name]}, not that of a convolution" if name in shapes else f"no {name}"
            raise InputError(f"{where} has the tensors of no network: {seen}")
        return shape[0], shape[1], shape[2], shape[3]

    def has(layer: str) -> bool:
        return bool(_shape(scheme, shapes, layer))

    depths: list[int] = []
    while has(f"stage{len(depths) + 1}_block1_conv1"):
        depths.append(1)
        while has(f"stage{len(depths)}_block{depths[-1] + 1}_conv1"):
            depths[-1] += 1
    stages = range(1, len(depths) + 1)
    block, last = ("bottleneck", 3) if has("stage1_block1_conv3") else ("basic", 2)
    widths = tuple(kernel(f"stage{s}_block1_conv{last}")[3] // EXPANSION[block] for s in stages)
    height, width, channels, _ = kernel("stem_conv")
    if (height, width) not in STEM_KERNELS:
        raise InputError(f"{where} has a stem of {height}x{width}: only 7x7 (ImageNet's) and 3x3 (CIFAR's) are built")
    stem = STEM_KERNELS[height, width]
    told = {"block": block, "depths": tuple(depths), "widths": widths, "stem": stem}
    untold = {field: values[0] for field, values in SCHEMES[scheme].computes.items()}
    spec = Spec(**{**untold, **told, "input_size": 224 if stem == "imagenet" else 32})
    if block == "bottleneck":
        _, _, inputs, inner = kernel("stage1_block1_conv2")
        groups = max(inner // inputs, 1)
        spec = replace(spec, groups=groups, width_per_group=-(-inner // groups * 64 // max(widths[0], 1)))
    blocks = [f"stage{s}_block{b}" for s, depth in zip(stages, depths, strict=True) for b in range(1, depth + 1)]
    projections = sum(has(f"{name}_shortcut_conv") for name in blocks)
    needed = sum(layer.endswith("shortcut_conv") for layer, _, _ in layout(replace(spec, shortcut="B")))
    shortcut = "C" if needed < projections == len(blocks) else "B" if projections or not needed else "A"
    return replace(spec, shortcut=shortcut), channels


def variant_of(spec: Spec) -> str | None:
    """The row of VARIANTS that a spec is, classes apart; with another stem where no row has that one."""
    wanted = computed(spec)
    for apart in ({"classes"}, {"classes", "stem", "pool_padding"}):
        for name, row in VARIANTS.items():
            known = computed(row)
            if all(known.get(field) == value for field, value in wanted.items() if field not in apart):
                return name
    return None


def _notes(spec: Spec, scheme: str, variant: str | None) -> Iterable[str]:
    strides = SCHEMES[scheme].computes["stride_on"]
    if spec.block == "bottleneck" and not SCHEMES[scheme].in_keras:
        twin = f"{variant}_v1" if f"{variant}_v1" in VARIANTS else "a network with the stride on the first 1x1"
        also = " (where its config says downsample_in_bottleneck)" if len(strides) > 1 else ""
        yield f"stride taken on the 3x3 convolutions; {twin} has the same tensors{also}"
    if spec.shortcut == "A":
        yield "shortcuts without weights taken as A (channels of zeros); a plain network has the same tensors"
    if spec.stem == "small":
        yield "3x3 stem taken with stride 1 and no pool behind it"


def _hint(names: Iterable[str]) -> str:
    names = list(names)
    seen = [what for pattern, what in _FOREIGN if any(re.search(pattern, name) for name in names)]
    if not any(name.endswith(("running_mean", "moving_mean")) for name in names):
        seen.append("no statistics of BatchNormalization (another normalisation, or folded away)")
    return f"; the names tell of {' and '.join(seen)}, which is not built here" if seen else ""
