"""In which form a classifier gives its answers: probabilities, independent ones, or logits."""

from __future__ import annotations

from typing import Any

import keras

from keras_resnet.depth import recursion_room
from keras_resnet.errors import UsageError, unknown
from keras_resnet.export.calibration import PROBABILITIES
from keras_resnet.export.concrete import EMBEDDING, answers_with
from keras_resnet.export.graph import learned_ranges
from keras_resnet.layers import Bound

SCORES = {"softmax": "softmax", "sigmoid": "sigmoid", "logits": "linear"}  # our name: that of Keras' activation


def check_scores(scores: str | None) -> None:
    """Raise UsageError for what is no form of scores."""
    if scores is not None and scores not in SCORES:
        raise unknown("form of scores", scores, SCORES, where="scores=")


def answering(model: keras.Model, scores: str | None) -> keras.Model:
    """A classifier that gives "softmax", "sigmoid" or "logits"; it shares all layers but the last with `model`.

    scores: None for its own form, softmax where that is logits. An embedding stays what it is.
    Raises UsageError for another form, and for an embedding whose scores are asked for.
    """
    check_scores(scores)
    has = answers_with(model)
    if has == EMBEDDING:
        if scores is not None:
            raise UsageError(f"scores={scores!r}: model {model.name!r} gives an embedding, not a score a class")
        return _of_one_image(model, model.outputs[0])
    wanted = scores or ("softmax" if has == "logits" else has)
    if wanted == has:
        return _of_one_image(model, model.outputs[0])
    behind, activation = _before_activation(model)
    function = SCORES[wanted]
    if isinstance(activation, keras.layers.Dense):
        layer = keras.layers.Dense.from_config({**activation.get_config(), "activation": function})
        output = layer(behind)
        layer.set_weights(activation.get_weights())
    elif wanted == "logits":
        output = behind
    else:
        name = "head_dense_activation" if activation is None else activation.name
        output = keras.layers.Activation(function, name=name, dtype="float32")(behind)
        if learned_ranges(model):
            output = Bound(*PROBABILITIES, name=f"{name}_bound", dtype="float32")(output)
    return _of_one_image(model, output)


def _of_one_image(model: keras.Model, output: Any) -> keras.Model:
    """A network that takes its image as it is, not in a list, as keras.Model(other.inputs, ...) does."""
    if not isinstance(model.input, (list, tuple, dict)) and output is model.outputs[0]:
        return model
    with recursion_room(len(model.layers)):
        return keras.Model(model.inputs[0], output, name=model.name)


def _before_activation(model: keras.Model) -> tuple[Any, keras.layers.Layer | None]:
    """The tensor that the last activation reads, and its layer; None where nothing follows the logits.

    A dense layer computes its own activation, and reads what the pooling gives.
    """
    last = layer = model.outputs[0]._keras_history.operation
    while isinstance(layer, Bound):
        layer = layer.input._keras_history.operation
    if isinstance(layer, keras.layers.Dense) and isinstance(last, Bound):  # trained for whole numbers, without softmax
        return model.outputs[0], None
    return layer.input, layer
