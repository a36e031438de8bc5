"""The table of published weight sets: a row a set, with what must be known before one of its figures is believed.

Pure data. The names are those that users know: `timm/resnet50.a1_in1k` is timm's and the hub's own,
`torchvision/resnet50.IMAGENET1K_V2` torchvision's, `keras/resnet50v2` the file name of keras.applications,
`akamaster/cifar_resnet20` that repository and our variant. Fetching is left to `weights`, tensor names to `naming`.
What a source does not publish is None here; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from keras_resnet.errors import UsageError, unknown
from keras_resnet.preprocessing import CAFFE, IMAGENET, SYMMETRIC, Preprocessing
from keras_resnet.specs import VARIANTS

SOURCES = ("url", "keras", "hub")


@dataclass(frozen=True)
class File:
    """One file, and how to know that it arrived whole."""

    name: str  # behind the source's address
    sha256: str | None = None  # 64 hexadecimal digits, or the first 8 where no more is published
    md5: str | None = None
    size_bytes: int | None = None
    dtype: str = "float32"  # of the tensors in it


@dataclass(frozen=True)
class Source:
    """Where a set lives."""

    kind: str  # "url": one file at an address; "keras": the same through keras.utils.get_file; "hub": huggingface.co
    address: str  # the folder's address, with its last slash; for the hub the repository
    file: File
    file_without_top: File | None = None  # the same network without its classifier, where it is published apart
    revision: str | None = None  # of a hub repository; None: not pinned, the newest
    mirror: str | None = None  # a hub repository that holds the same weights as model.safetensors


@dataclass(frozen=True)
class Accuracy:
    """Single centre crop, whole validation (ImageNet) or test set (CIFAR-10), percent, as the source prints it."""

    top1: float
    top5: float | None  # None: not published
    crop: int  # pixels, as is the resize of the short side before it
    resize: int | None  # 0: no resize; None: not published


@dataclass(frozen=True)
class WeightSet:
    """One published set of weights."""

    tag: str  # its name in WEIGHTS
    variant: str  # its row of specs.VARIANTS
    naming: str  # its row of naming.SCHEMES
    source: Source
    classes: int

    preprocessing: Preprocessing  # at test, where the first accuracy was measured
    assumed: tuple[str, ...]  # the fields of `preprocessing` that the source does not publish: those values are ours
    train_size: int | None  # pixels of the crops it was trained on; None: not published
    accuracy: tuple[Accuracy, ...]

    licence: str  # of the weights, by SPDX's name, as their source gives it
    terms: str  # what the licence leaves open: the data that they were trained on
    recipe: str  # address of how they were trained, or of the paper

    def preprocessing_at(self, size: int) -> Preprocessing:
        """What images need where the network reads `size` pixels: as published there, else resized in proportion.

        >>> resolve("timm/resnet50.a1_in1k").preprocessing_at(224).resize
        235
        """
        published = {accuracy.crop: accuracy.resize for accuracy in self.accuracy}
        resize = published.get(size)
        if resize is None:
            resize = round(size * self.preprocessing.resize / self.preprocessing.crop)
        return replace(self.preprocessing, resize=resize, crop=size)


_IMAGENET_TERMS = (
    "Trained on ImageNet-1k, whose images image-net.org gives for non-commercial research and education only; "
    "the licence of the weights does not speak of the images."
)
_CIFAR_TERMS = "Trained on CIFAR-10, for whose images no licence is known."


@dataclass(frozen=True)
class _Recipe:
    """What all sets of one training recipe share."""

    link: str  # "": the page of the set's own hub repository
    licence: str
    preprocessing: Preprocessing
    train_size: int | None
    crops: tuple[tuple[int, int | None], ...]  # (crop, resize) of each accuracy in a row; the first is the test size
    assumed: tuple[str, ...] = ()
    terms: str = _IMAGENET_TERMS
    classes: int = 1000

    def row(
        self, tag: str, variant: str, naming: str, source: Source, *figures: tuple[float, float | None]
    ) -> WeightSet:
        return WeightSet(
            tag=tag,
            variant=variant,
            naming=naming,
            source=source,
            classes=self.classes,
            preprocessing=self.preprocessing,
            assumed=self.assumed,
            train_size=self.train_size,
            accuracy=tuple(
                Accuracy(top1, top5, crop, resize)
                for (top1, top5), (crop, resize) in zip(figures, self.crops, strict=True)
            ),
            licence=self.licence,
            terms=self.terms,
            recipe=self.link,
        )


# torchvision 0.29.2, models/resnet.py ------------------------------------------------------------------------------

_REFERENCES = "https://github.com/pytorch/vision/tree/main/references/classification"
_NEW_RECIPE = "https://github.com/pytorch/vision/issues/3995"

V1 = _Recipe(f"{_REFERENCES}#resnet", "BSD-3-Clause", IMAGENET, 224, crops=((224, 256),))
V1_RESNEXT = replace(V1, link=f"{_REFERENCES}#resnext")
V1_WIDE = replace(V1, link="https://github.com/pytorch/vision/pull/912#issue-445437439")
V2 = _Recipe(f"{_NEW_RECIPE}#new-recipe", "BSD-3-Clause", replace(IMAGENET, resize=232), 176, crops=((224, 232),))
V2_50 = replace(V2, link=f"{_NEW_RECIPE}#issuecomment-1013906621")
V2_FIXRES = replace(V2, link=f"{_NEW_RECIPE}#new-recipe-with-fixres")
V2_64X4D = replace(V2, link="https://github.com/pytorch/vision/pull/5935")


def _torchvision(
    name: str, recipe: _Recipe, digits: str, top1: float, top5: float, dtype: str = "float32"
) -> WeightSet:
    """A row by its name "VARIANT.SET"; the digits are the first of the file's SHA-256 and stand in its name."""
    variant = name.split(".")[0]
    source = Source(
        "url",
        "https://download.pytorch.org/models/",
        File(f"{variant}-{digits}.pth", sha256=digits, dtype=dtype),
        mirror=f"timm/{variant}.{'tv2' if name.endswith('V2') else 'tv'}_in1k",
    )
    return recipe.row(f"torchvision/{name}", variant, "torchvision", source, (top1, top5))


_TORCHVISION = (
    _torchvision("resnet18.IMAGENET1K_V1", V1, "f37072fd", 69.758, 89.078),
    _torchvision("resnet34.IMAGENET1K_V1", V1, "b627a593", 73.314, 91.420),
    _torchvision("resnet50.IMAGENET1K_V1", V1, "0676ba61", 76.130, 92.862),
    _torchvision("resnet50.IMAGENET1K_V2", V2_50, "11ad3fa6", 80.858, 95.434),
    _torchvision("resnet101.IMAGENET1K_V1", V1, "63fe2227", 77.374, 93.546),
    _torchvision("resnet101.IMAGENET1K_V2", V2, "cd907fc2", 81.886, 95.780),
    _torchvision("resnet152.IMAGENET1K_V1", V1, "394f9c45", 78.312, 94.046),
    _torchvision("resnet152.IMAGENET1K_V2", V2, "f82ba261", 82.284, 96.002),
    _torchvision("resnext50_32x4d.IMAGENET1K_V1", V1_RESNEXT, "7cdf4587", 77.618, 93.698),
    _torchvision("resnext50_32x4d.IMAGENET1K_V2", V2, "1a0047aa", 81.198, 95.340),
    _torchvision("resnext101_32x8d.IMAGENET1K_V1", V1_RESNEXT, "8ba56ff5", 79.312, 94.526),
    _torchvision("resnext101_32x8d.IMAGENET1K_V2", V2_FIXRES, "110c445d", 82.834, 96.228),
    # Called V1 because it is the only one; its recipe and resize are those of the others' V2.
    _torchvision("resnext101_64x4d.IMAGENET1K_V1", V2_64X4D, "173b62eb", 83.246, 96.454),
    # float16: the published size of these two files is two bytes a value.
    _torchvision("wide_resnet50_2.IMAGENET1K_V1", V1_WIDE, "95faca4d", 78.468, 94.086, "float16"),
    _torchvision("wide_resnet50_2.IMAGENET1K_V2", V2_FIXRES, "9ba9bcbe", 81.602, 95.758),
    _torchvision("wide_resnet101_2.IMAGENET1K_V1", V1_WIDE, "32ee1156", 78.848, 94.284, "float16"),
    _torchvision("wide_resnet101_2.IMAGENET1K_V2", V2, "d733dc28", 82.510, 96.020),
)

# timm 1.0.31; figures of results/results-imagenet.csv at aa4b585 -----------------------------------------------------

_BICUBIC = replace(IMAGENET, interpolation="bicubic")
_HALF = Preprocessing(288, 288, "bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

# "ResNet strikes back": A1, A2 and A1H at 288 without border, and at 224 of 235.
A1 = _Recipe(
    "https://arxiv.org/abs/2110.00476",
    "Apache-2.0",
    replace(_BICUBIC, resize=288, crop=288),
    224,
    crops=((288, 288), (224, 235)),
)
A1H_176 = replace(A1, preprocessing=replace(_BICUBIC, resize=224), train_size=176, crops=((224, 224), (176, 195)))
A3 = replace(A1, preprocessing=replace(_BICUBIC, resize=235), train_size=160, crops=((224, 235), (160, 168)))
A1H_V2 = replace(A1, preprocessing=_HALF, link="")
RA4 = replace(A1H_V2, crops=((288, 288), (224, 248)))


def _timm(name: str, recipe: _Recipe, *figures: tuple[float, float | None]) -> WeightSet:
    """A row by timm's own name; figures in the order of the recipe's crops."""
    variant = name.split(".")[0]
    naming = "timm_v2" if VARIANTS[variant].preactivation else "torchvision"
    source = Source("hub", f"timm/{name}", File("model.safetensors"))
    recipe = replace(recipe, link=recipe.link or f"https://huggingface.co/timm/{name}")
    return recipe.row(f"timm/{name}", variant, naming, source, *figures)


_TIMM = (
    _timm("resnet18.a1_in1k", A1, (73.164, 91.054), (71.504, 90.086)),
    _timm("resnet18.a2_in1k", A1, (72.364, 90.620), (70.634, 89.486)),
    _timm("resnet18.a3_in1k", A3, (68.250, 88.172), (65.670, 86.268)),
    _timm("resnet34.a1_in1k", A1, (77.930, 93.758), (76.420, 92.896)),
    _timm("resnet34.a2_in1k", A1, (77.150, 93.288), (75.520, 92.454)),
    _timm("resnet34.a3_in1k", A3, (72.996, 91.116), (70.580, 89.540)),
    _timm("resnet50.a1_in1k", A1, (81.240, 95.112), (80.382, 94.598)),
    _timm("resnet50.a1h_in1k", A1H_176, (80.654, 95.312), (79.264, 94.498)),
    _timm("resnet50.a2_in1k", A1, (80.774, 94.978), (79.828, 94.560)),
    _timm("resnet50.a3_in1k", A3, (78.052, 93.780), (75.994, 92.494)),
    _timm("resnet101.a1_in1k", A1, (82.326, 95.630), (81.494, 95.164)),
    _timm("resnet101.a1h_in1k", A1, (82.796, 96.324), (81.950, 95.760)),
    _timm("resnet101.a2_in1k", A1, (82.218, 95.740), (81.344, 95.198)),
    _timm("resnet101.a3_in1k", A3, (79.836, 94.608), (77.928, 93.686)),
    _timm("resnet152.a1_in1k", A1, (82.742, 95.734), (81.998, 95.294)),
    _timm("resnet152.a1h_in1k", A1, (83.494, 96.522), (82.818, 96.124)),
    _timm("resnet152.a2_in1k", A1, (82.614, 95.748), (81.764, 95.270)),
    _timm("resnet152.a3_in1k", A3, (80.548, 95.004), (78.896, 94.140)),
    _timm("resnext50_32x4d.a1_in1k", A1, (81.480, 95.152), (80.526, 94.458)),
    _timm("resnext50_32x4d.a1h_in1k", A1, (82.016, 95.934), (81.140, 95.320)),
    _timm("resnetv2_18.ra4_e3600_r224_in1k", RA4, (75.364, 92.692), (73.572, 91.356)),
    _timm("resnetv2_34.ra4_e3600_r224_in1k", RA4, (79.070, 94.560), (77.626, 93.518)),
    _timm("resnetv2_50.a1h_in1k", A1H_V2, (81.406, 95.712), (80.410, 95.082)),
    _timm("resnetv2_101.a1h_in1k", A1H_V2, (83.002, 96.444), (82.042, 95.866)),
    # torchvision's weights as safetensors; the figures are timm's, without a top-5.
    _timm("resnet18.tv_in1k", V1, (69.752, None)),
    _timm("resnet34.tv_in1k", V1, (73.298, None)),
    _timm("resnet50.tv_in1k", V1, (76.156, None)),
    _timm("resnet50.tv2_in1k", V2_50, (80.846, None)),
    _timm("resnet101.tv_in1k", V1, (77.404, None)),
    _timm("resnet101.tv2_in1k", V2, (81.906, None)),
    _timm("resnet152.tv_in1k", V1, (78.330, None)),
    _timm("resnet152.tv2_in1k", V2, (82.294, None)),
)

# keras.applications; figures of the last README of keras-applications that has a table -------------------------------

# Licences: Keras' documentation of applications (2.3), which names the origin of both. Resize and filter are published
# nowhere: here torchvision's 256 to 224 and its filter.
KERAS_V1 = _Recipe(
    "https://github.com/KaimingHe/deep-residual-networks",
    "MIT",
    replace(CAFFE, resize=256, crop=224),
    None,
    crops=((224, None),),
    assumed=("resize", "interpolation"),
)
KERAS_V2 = replace(
    KERAS_V1,
    link="https://arxiv.org/abs/1603.05027",
    licence="BSD-3-Clause",
    preprocessing=replace(SYMMETRIC, resize=342, crop=299),
    crops=((299, None),),
)


def _keras(name: str, top1: float, top5: float, md5: str, md5_without_top: str) -> WeightSet:
    """A row by the name in the file's name; keras.applications' own hashes."""
    is_v2 = name.endswith("v2")
    stem = f"{name}_weights_tf_dim_ordering_tf_kernels"
    source = Source(
        "keras",
        "https://storage.googleapis.com/tensorflow/keras-applications/resnet/",
        File(f"{stem}.h5", md5=md5),
        File(f"{stem}_notop.h5", md5=md5_without_top),
    )
    variant = f"{name.removesuffix('v2')}_{'v2' if is_v2 else 'v1'}"
    recipe = KERAS_V2 if is_v2 else KERAS_V1
    return recipe.row(f"keras/{name}", variant, "keras_v2" if is_v2 else "keras_v1", source, (top1, top5))


_KERAS = (
    _keras("resnet50", 74.928, 92.060, "2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626"),
    _keras("resnet101", 76.420, 92.786, "f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21"),
    _keras("resnet152", 76.604, 93.118, "100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    _keras("resnet50v2", 75.960, 93.034, "3ef43a0b657b3be2300d5770ece849e0", "fac2f116257151a9d068a22e544a4917"),
    _keras("resnet101v2", 77.234, 93.816, "6343647c601c52e1368623803854d971", "c0ed64b8031c3730f411d2eb4eea35b5"),
    _keras("resnet152v2", 78.032, 94.162, "a49b44d1979771252814e80f8ec446f9", "ed17cf2e0169df9d443503ef94b23b33"),
)

# akamaster/pytorch_resnet_cifar10; figures of its README, which used no validation split ------------------------------

# `best_prec1` in these files is the best epoch's test accuracy; the weights are the last epoch's.
AKAMASTER = _Recipe(
    "https://github.com/akamaster/pytorch_resnet_cifar10",
    "BSD-2-Clause",
    replace(IMAGENET, resize=0, crop=32),
    32,
    crops=((32, 0),),
    terms=_CIFAR_TERMS,
    classes=10,
)


def _akamaster(depth: int, sha256: str, top1: float, size_bytes: int | None = None) -> WeightSet:
    source = Source(
        "url",
        "https://raw.githubusercontent.com/akamaster/pytorch_resnet_cifar10/master/pretrained_models/",
        File(f"resnet{depth}-{sha256[:8]}.th", sha256=sha256, size_bytes=size_bytes),
    )
    variant = f"cifar_resnet{depth}"
    return AKAMASTER.row(f"akamaster/{variant}", variant, "akamaster", source, (top1, None))


_AKAMASTER = (
    _akamaster(20, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8", 91.73, 1_099_231),
    _akamaster(32, "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850", 92.63, 1_890_043),
    _akamaster(44, "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4", 93.10, 2_680_855),
    _akamaster(56, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367", 93.39, 3_471_733),
    _akamaster(110, "1d1ed7c2", 93.68),
    _akamaster(1202, "f3b1deed", 93.82),
)

WEIGHTS: Mapping[str, WeightSet] = {row.tag: row for row in (*_TORCHVISION, *_TIMM, *_KERAS, *_AKAMASTER)}

# What weights="imagenet" means: torchvision's newest set, and where it has none the one set that there is.
IMAGENET_DEFAULTS: Mapping[str, str] = {
    **{f"resnet{depth}": f"torchvision/resnet{depth}.IMAGENET1K_V1" for depth in (18, 34)},
    **{f"resnet{depth}": f"torchvision/resnet{depth}.IMAGENET1K_V2" for depth in (50, 101, 152)},
    "resnext50_32x4d": "torchvision/resnext50_32x4d.IMAGENET1K_V2",
    "resnext101_32x8d": "torchvision/resnext101_32x8d.IMAGENET1K_V2",
    "resnext101_64x4d": "torchvision/resnext101_64x4d.IMAGENET1K_V1",
    "wide_resnet50_2": "torchvision/wide_resnet50_2.IMAGENET1K_V2",
    "wide_resnet101_2": "torchvision/wide_resnet101_2.IMAGENET1K_V2",
    **{f"resnet{depth}_v1": f"keras/resnet{depth}" for depth in (50, 101, 152)},
    **{f"resnet{depth}_v2": f"keras/resnet{depth}v2" for depth in (50, 101, 152)},
    **{f"resnetv2_{depth}": f"timm/resnetv2_{depth}.ra4_e3600_r224_in1k" for depth in (18, 34)},
    **{f"resnetv2_{depth}": f"timm/resnetv2_{depth}.a1h_in1k" for depth in (50, 101)},
}


def list_weights(pattern: str = "") -> list[str]:
    """The names of all weight sets that contain `pattern`, in either case, in the table's order."""
    return [tag for tag in WEIGHTS if pattern.lower() in tag.lower()]


def resolve(tag: str, variant: str | None = None) -> WeightSet:
    """The weight set of a name, or of "imagenet" for a variant, checked to be one of that variant's.

    variant: a name of `list_variants()`; None: whichever the set is for ("imagenet" then says too little).
    Raises UsageError for an unknown name (the nearest are offered), and for a set of another variant.

    >>> resolve("imagenet", "resnet50").tag
    'torchvision/resnet50.IMAGENET1K_V2'
    """
    own = [name for name, row in WEIGHTS.items() if row.variant == variant]
    offered = f"published for {variant!r}: {', '.join(own)}" if own else f"none is published for {variant!r}: use None"
    if tag == "imagenet":
        if variant is None:
            raise UsageError("weights='imagenet' means another set for each variant: name the variant, or one set")
        if variant not in IMAGENET_DEFAULTS:
            raise UsageError(f"weights='imagenet' is no set of variant {variant!r}; {offered}")
        return WEIGHTS[IMAGENET_DEFAULTS[variant]]
    if tag not in WEIGHTS:
        if variant is not None and not own:
            raise UsageError(f"unknown weight set {tag!r} (weights=); {offered}")
        names = [*own, "imagenet"] if variant in IMAGENET_DEFAULTS else own or WEIGHTS
        raise unknown("weight set", tag, names, where="weights=", show_all="`keras-resnet list weights`")
    row = WEIGHTS[tag]
    if variant not in (None, row.variant):
        raise UsageError(f"weights={tag!r} is for variant {row.variant!r}, not for {variant!r}; {offered}")
    return row
