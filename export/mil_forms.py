"""The number formats of Core ML packages: which system can hold each, and how coremltools packs their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from keras_resnet.errors import UsageError, unknown
from keras_resnet.export.kernels import PER_BLOCK, PER_TABLE, UNPACKED
from keras_resnet.export.rounding import palette


@dataclass(frozen=True)
class Form:
    """One number format: the precision of the arithmetic, how weights are compressed, the oldest system that takes it.

    default: the oldest by default, where that is newer; compress: a function of coremltools.optimize.coreml, its
    configuration class and what is set in it; activations: whether they are of 8 bits too; grid: the values that
    weights are rounded to before, where there are calibration images: coremltools finds them and rounds nothing.
    """

    precision: str = "FLOAT16"
    oldest: str = "iOS15"
    default: str = ""
    compress: tuple[str, str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    activations: bool = False
    grid: str = ""


_LINEAR = ("linear_quantize_weights", "OpLinearQuantizerConfig")
_PALETTE = ("palettize_weights", "OpPalettizerConfig")
_PRUNE = ("prune_weights", "OpMagnitudePrunerConfig")
_SYMMETRIC, _KMEANS = {"mode": "linear_symmetric"}, {"mode": "kmeans"}

_BLOCKS = {**_SYMMETRIC, "dtype": "int4", "granularity": "per_block", "block_size": PER_BLOCK}
_TABLES = {"granularity": "per_grouped_channel", "group_size": PER_TABLE}
GROUPED = "iOS18"  # the first system on which a palette may be of some filters

FORMS: Mapping[str, Form] = {
    "float16": Form(),
    "float32": Form("FLOAT32"),
    "int8": Form(oldest="iOS16", compress=_LINEAR, settings=_SYMMETRIC, grid="steps"),
    "w8a8": Form(oldest="iOS17", compress=_LINEAR, settings=_SYMMETRIC, activations=True, grid="steps"),
    "int4": Form(oldest="iOS18", compress=_LINEAR, settings=_BLOCKS, grid="blocks"),
    "palette8": Form(oldest="iOS16", compress=_PALETTE, settings={**_KMEANS, "nbits": 8}, grid="palette8"),
    "palette6": Form(oldest="iOS16", compress=_PALETTE, settings={**_KMEANS, "nbits": 6}, grid="palette6"),
    "palette4": Form(
        oldest="iOS16", default=GROUPED, compress=_PALETTE, settings={**_KMEANS, "nbits": 4}, grid="palette4"
    ),
    "prune": Form(oldest="iOS16", compress=_PRUNE, settings={"target_sparsity": 0.5}, grid="half"),
}
TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")  # the same program for macOS 12 to 15 and 26
DEFAULT_TARGET = "iOS16"


def form_for(quantize: str, target: str | None) -> tuple[Form, str]:
    """The form, and the oldest system that is asked for and can hold it."""
    if quantize not in FORMS:
        raise unknown("number format", quantize, FORMS, where="quantize=")
    form = FORMS[quantize]
    if target is not None and target not in TARGETS:
        raise unknown("system", target, TARGETS, where="target=")
    system = target or max(DEFAULT_TARGET, form.oldest, form.default)
    if system < form.oldest:
        raise UsageError(f"target={target!r} cannot hold {quantize!r} weights: {form.oldest} is the oldest that can")
    if form.compress is _PALETTE and system >= GROUPED:
        form = replace(form, settings={**form.settings, **_TABLES}, grid=form.grid.replace("palette", "palettes"))
    return form, system


def packed(
    coremltools: Any,
    package: Any,
    form: Form,
    stays: Callable[[str], bool] | None = None,
    *,
    is_rounded: bool = False,
) -> Any:
    """The package, its weights packed but those that an operation whose name `stays` reads.

    is_rounded: they have no more values than fit.
    """
    optimize = coremltools.optimize.coreml
    function, config = form.compress  # type: ignore[misc]
    settings = dict(form.settings)
    if is_rounded and "nbits" in settings:  # k-means would look at some of the weights, and move all of them
        count = 1 << settings["nbits"]
        settings |= {"mode": "custom", "nbits": None, "lut_function": lambda weights: table_of(weights, count)}
    whole = optimize.OptimizationConfig(global_config=getattr(optimize, config)(**settings))
    if stays is not None:
        for name, weight in optimize.get_weights_metadata(package, weight_threshold=UNPACKED).items():
            if any(stays(reader.name) for reader in weight.child_ops):
                whole.set_op_name(name, None)
    return getattr(optimize, function)(package, whole)


def table_of(weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of weights, the best `count` where there are more; and the place of each weight's own, in a row.

    coremltools' mode "unique" counts them in float16, of which NumPy 2.4 sorts some ten thousand numbers wrongly on
    processors with AVX512-VBMI2.
    """
    flat = weights.astype(np.float32).ravel()
    values, places = np.unique(flat, return_inverse=True)
    if len(values) > count:  # calibration left this tensor as it was
        nearest = palette(flat[None], np.ones_like(flat[None]), count)
        values, places = np.unique(nearest(0, slice(None), flat), return_inverse=True)
    table = np.zeros(count, weights.dtype)
    table[: len(values)] = values
    return table, places.astype(np.uint8)
