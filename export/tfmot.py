"""TensorFlow's model optimisation toolkit, which knows tf_keras alone, on networks of Keras 3.

A network is rebuilt in tf_keras layer by layer and proved to answer alike; a step wraps that twin, trains it, and what
it has come to goes back into a Keras 3 network by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_resnet.depth import recursion_room
from keras_resnet.errors import InputError, missing_extra
from keras_resnet.export.graph import WEIGHTED, consumers, rebuild, sources
from keras_resnet.export.kernels import CLUSTERS

EXTRA = "compress"
EQUAL = 1e-5  # of the largest answer: sums of float32 in another order
SPARSITY = 0.5
# In a config of Keras 3, and unknown to tf_keras
_UNKNOWN = ("dtype", "module", "registered_name", "build_config", "quantization_config", "renorm", "synchronized")
_REBUILT = (
    *(keras.layers.Conv2D, keras.layers.Dense, keras.layers.BatchNormalization, keras.layers.Activation),
    *(keras.layers.ZeroPadding2D, keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, keras.layers.Dropout),
    *(keras.layers.GlobalAveragePooling2D, keras.layers.Add, keras.layers.Subtract, keras.layers.Multiply),
)
_NOT_QUANTISED = (keras.layers.Subtract, keras.layers.Multiply)  # not in its registry

Wrap = Callable[[Any, Any], Any]  # (tfmot, twin) -> the model to train


@dataclass(frozen=True)
class Step:
    """One treatment of a network: how its twin is wrapped, and trained, and freed of its wrappers."""

    wrap: Wrap
    learning_rate: float
    strip: Callable[[Any, Any], Any] | None = None  # (tfmot, trained) -> without wrappers; None: quantised
    callbacks: Callable[[Any], Sequence[Any]] = field(default=lambda tfmot: ())


def _wrapped(one: Callable[[Any, Any], Any]) -> Wrap:
    """Wrap the convolutions and the classifier, each by one(tfmot, layer)."""

    def wrap(tfmot: Any, twin: Any) -> Any:
        import tf_keras

        kinds = (tf_keras.layers.Conv2D, tf_keras.layers.Dense)
        return tf_keras.models.clone_model(
            twin, clone_function=lambda layer: one(tfmot, layer) if isinstance(layer, kinds) else layer
        )

    return wrap


def _pruning(**settings: Any) -> Step:
    def one(tfmot: Any, layer: Any) -> Any:
        sparsity = tfmot.sparsity.keras
        schedule = sparsity.ConstantSparsity(SPARSITY, begin_step=1)  # with 0 the first step to prune were the 100th
        return sparsity.prune_low_magnitude(layer, pruning_schedule=schedule, **settings)

    return Step(
        _wrapped(one),
        1e-3,
        lambda tfmot, trained: tfmot.sparsity.keras.strip_pruning(trained),
        lambda tfmot: [tfmot.sparsity.keras.UpdatePruningStep()],
    )


def _clustering(*, preserve_sparsity: bool) -> Step:
    def one(tfmot: Any, layer: Any) -> Any:
        # The public function knows no preserve_sparsity.
        from tensorflow_model_optimization.python.core.clustering.keras.experimental.cluster import cluster_weights

        return cluster_weights(
            layer,
            number_of_clusters=CLUSTERS,
            cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
            preserve_sparsity=preserve_sparsity,
        )

    return Step(_wrapped(one), 1e-4, lambda tfmot, trained: tfmot.clustering.keras.strip_clustering(trained))


def _quantising(scheme: str, **settings: Any) -> Step:
    def wrap(tfmot: Any, twin: Any) -> Any:
        quantization = tfmot.quantization.keras
        if not scheme:
            return quantization.quantize_model(twin)
        annotated = quantization.quantize_annotate_model(twin)
        return quantization.quantize_apply(annotated, getattr(tfmot.experimental.combine, scheme)(**settings))

    return Step(wrap, 1e-4)


STEPS: Mapping[str, Step] = {
    "prune": _pruning(),
    "prune-2:4": _pruning(sparsity_m_by_n=(2, 4)),
    "cluster": _clustering(preserve_sparsity=False),
    "cluster, zeros kept": _clustering(preserve_sparsity=True),
    "quantise": _quantising(""),
    "quantise, zeros kept": _quantising("Default8BitPrunePreserveQuantizeScheme"),
    "quantise, clusters kept": _quantising("Default8BitClusterPreserveQuantizeScheme", preserve_sparsity=False),
    "quantise, both kept": _quantising("Default8BitClusterPreserveQuantizeScheme", preserve_sparsity=True),
}


def load(purpose: str) -> tuple[Any, Any]:
    """tf_keras and tfmot. Raises MissingExtraError without the extra."""
    try:
        import tensorflow_model_optimization
        import tf_keras
    except ImportError as error:
        raise missing_extra(purpose, EXTRA, error) from error
    return tf_keras, tensorflow_model_optimization


def check_takes(model: keras.Model, step: str) -> None:
    """Raise InputError, which says why, for a network that a step cannot treat."""
    for layer in model.layers:
        if type(layer) not in (*_REBUILT, keras.layers.Identity, keras.layers.InputLayer):
            raise InputError(
                f"layer {layer.name!r} of {model.name!r} is a {type(layer).__name__}, which cannot be rebuilt in "
                "tf_keras: use method 'qat', which stays in Keras 3"
            )
    if STEPS[step].strip is not None:
        return
    read, layers = consumers(model), {layer.name: layer for layer in model.layers}
    for layer in model.layers:
        reason = ""
        if isinstance(layer, _NOT_QUANTISED):
            reason = f"a {type(layer).__name__}, which tfmot does not quantise"
        elif isinstance(layer, keras.layers.BatchNormalization):
            (source,) = sources(layer)
            if not isinstance(layers[source], WEIGHTED) or read[source] != 1:
                reason = "a BatchNormalization that does not follow a convolution of its own, as tfmot asks"
        if reason:
            raise InputError(f"layer {layer.name!r} of {model.name!r} is {reason}: use method 'qat', which takes it")


def twin_of(model: keras.Model, x: np.ndarray) -> Any:
    """The same network in tf_keras, with the same weights. x: inputs that both must answer alike, float32.

    Raises InputError where they do not.
    """
    import tf_keras

    def call(layer: Any, read: Any) -> Any:
        if isinstance(layer, keras.layers.Identity):
            return read
        config = {
            key: value
            for key, value in layer.get_config().items()
            if not key.startswith(_UNKNOWN) and not (isinstance(value, dict) and "class_name" in value)
        }
        return getattr(tf_keras.layers, type(layer).__name__).from_config(config)(read)

    image = tf_keras.Input(model.inputs[0].shape[1:], name="image")
    with recursion_room(len(model.layers)):
        twin = tf_keras.Model(image, rebuild(model, image, call), name=model.name)
    for layer in model.layers:
        for variable in layer.weights:
            getattr(twin.get_layer(layer.name), variable.name).assign(np.asarray(variable.value))
    wanted, got = np.asarray(model.predict_on_batch(x)), twin.predict_on_batch(x)
    if np.abs(wanted - got).max() > EQUAL * np.abs(wanted).max():
        raise InputError(
            f"{model.name!r} rebuilt in tf_keras answers otherwise (by {np.abs(wanted - got).max():.2e}): use method "
            "'qat', which stays in Keras 3"
        )
    return twin


def wrapped(tfmot: Any, twin: Any, step: str, ranges: Mapping[str, tuple[float, float]]) -> Any:
    """The twin, ready to be trained for a step; ranges: what those of activations start from, by layer."""
    model = STEPS[step].wrap(tfmot, twin)
    for name, (low, high) in _range_variables(model).items():
        if name in ranges:  # from its own start of -6 to 6 they would move by a thousandth a step
            low.assign(ranges[name][0])
            high.assign(ranges[name][1])
    return model


def brought_back(model: keras.Model, tfmot: Any, trained: Any, step: str) -> keras.Model:
    """A copy of a Keras 3 network with the weights that a step has come to."""
    strip = STEPS[step].strip
    plain = trained if strip is None else strip(tfmot, trained)
    found = {getattr(layer, "layer", layer).name: layer for layer in plain.layers}
    with recursion_room(len(model.layers)):
        copy = keras.models.clone_model(model)
    for layer in copy.layers:
        layer.set_weights([_value(found[layer.name], variable.name) for variable in layer.weights])
    return copy


def learned_ranges(model: keras.Model, trained: Any) -> dict[str, tuple[float, float]]:
    """The ranges of activations that the quantised twin of a network has come to, by layer of its simplified graph."""
    convolutions = _merged(model)
    found = _range_variables(trained).items()
    return {convolutions.get(name, name): (float(low), float(high)) for name, (low, high) in found}


def by_own_names(model: keras.Model, ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Ranges by layer of the simplified graph, by layer of the network: that which gives what the range is of."""
    norms = {convolution: norm for norm, convolution in _merged(model).items()}
    return {norms.get(name, name): bounds for name, bounds in ranges.items()}


def _merged(model: keras.Model) -> dict[str, str]:
    """The convolution that each normalisation of a network goes into."""
    return {x.name: sources(x)[0] for x in model.layers if isinstance(x, keras.layers.BatchNormalization)}


def _value(layer: Any, name: str) -> np.ndarray:
    """A weight of a layer; a kernel in a wrapper that quantises it, as it computes with it."""
    for variable, quantizer, state in getattr(layer, "_weight_vars", ()):
        if variable.name.split("/")[-1].split(":")[0] == name:
            return np.asarray(quantizer(variable, False, weights=state))
    return np.asarray(getattr(getattr(layer, "layer", layer), name))


def _range_variables(model: Any) -> dict[str, tuple[Any, Any]]:
    """The variables (low, high) of each wrapped layer's output, by the layer's name."""
    found = {}
    for layer in model.layers:
        named = {variable.name.split("/")[-1].split(":")[0]: variable for variable in layer.weights}
        for kind in ("output", "post_activation"):
            if f"{kind}_min" in named:
                found[layer.layer.name] = named[f"{kind}_min"], named[f"{kind}_max"]
    return found
