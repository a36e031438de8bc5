"""TensorFlow's converter in a process of its own, for it can end the process that calls it.

This file is also that process: `python converter.py FOLDER`. It reads the folder and imports nothing of ours, so that
it starts quickly.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

GRAPH, SETTINGS, INPUTS, RESULT = "graph", "settings.json", "inputs.npy", "result.tflite"
LAST_LINES = 3  # of a failed process, that an error repeats


def convert(function: Any, variables: list[Any], settings: Mapping[str, Any], inputs: np.ndarray | None) -> bytes:
    """The content of a .tflite file that computes a concrete function.

    variables: the tf.Variables that it reads; settings: attributes of the converter, see `tflite.FORMS`; inputs:
    float32 [n, height, width, channels] for a converter that measures ranges itself, else None.
    Raises ExportError where the converter fails or ends its process.
    """
    import tensorflow as tf

    from keras_resnet.errors import ExportError

    with tempfile.TemporaryDirectory(prefix="keras-resnet-") as scratch:
        folder = Path(scratch)
        holder = tf.Module()
        # The variables themselves, not the Keras model: with that as trackable the converter writes a file of NaNs.
        holder.variables_, holder.function = variables, function
        tf.saved_model.save(holder, str(folder / GRAPH), signatures=function)
        (folder / SETTINGS).write_text(json.dumps(dict(settings)), encoding="utf-8")
        if inputs is not None:
            np.save(folder / INPUTS, inputs)
        code, said = run(folder)
        result = folder / RESULT
        if code or not result.is_file():
            how = f"was ended by signal {-code}" if code < 0 else f"failed with code {code}"
            lines = [line for line in said.splitlines() if line.strip()][-LAST_LINES:]
            raise ExportError(f"the converter {how}: {' | '.join(lines) or 'it said nothing'}")
        return result.read_bytes()


def run(folder: Path) -> tuple[int, str]:
    """Convert what lies in a folder, in another process; its exit code, below 0 for a signal, and what it said."""
    command = [sys.executable, "-P", __file__, str(folder)]  # -P: modules beside this file hide no other's
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    return done.returncode, done.stderr


def convert_folder(folder: Path) -> None:
    """Read a graph and settings from a folder and write the file there; may end the process."""
    import tensorflow as tf

    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / GRAPH), signature_keys=["serving_default"])
    if settings["optimize"]:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.dtypes.as_dtype(name) for name in settings["types"]]
    if settings["operations"]:
        converter.target_spec.supported_ops = [tf.lite.OpsSet[settings["operations"]]]
    converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(settings["border"])
    if (folder / INPUTS).is_file():
        inputs = np.load(folder / INPUTS)
        converter.representative_dataset = lambda: ({"image": image[None]} for image in inputs)
    (folder / RESULT).write_bytes(converter.convert())


if __name__ == "__main__":
    convert_folder(Path(sys.argv[1]))
