"""Our default int8 beside ai-edge-quantizer's, of the same network, calibration and evaluation images.

    python -m venv aeq && aeq/bin/pip install ai-edge-quantizer==0.10.0
    python -m benchmarks.edge_quantizer resnet18:FILE.safetensors --calibration calib200.tar --data val1000.tar \\
        --python aeq/bin/python

--python: of an environment with ai-edge-quantizer, which is given our float32 file, the calibration pixels and its own
recipe for int8, `static_wi8_ai8`. Images are read by their class folders' numbers and cropped at (1, 1), not resized.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.quantisation import paired_interval, read, uncropped
from keras_resnet.export.tflite import FORMS, build, prepare
from keras_resnet.export.verification import TfliteFile
from keras_resnet.preprocessing import preprocessing_of
from keras_resnet.training.evaluation import scores_of

# What the other environment runs, which has none of ours: FLOAT.tflite PIXELS.npy OUT.tflite
THEIRS = """
import sys
import numpy as np
from ai_edge_quantizer import quantizer, recipe

given, pixels, out = sys.argv[1:]
ours = quantizer.Quantizer(given, recipe.static_wi8_ai8())
images = [{"image": image[None].astype(np.float32)} for image in np.load(pixels)]
ours.quantize(ours.calibrate({"serving_default": images})).export_model(out)
"""


def theirs(python: Path, content: bytes, pixels: np.ndarray) -> bytes:
    """The int8 file that ai-edge-quantizer makes of a float32 file."""
    with tempfile.TemporaryDirectory() as folder:
        given, images, out = (Path(folder) / name for name in ("float.tflite", "pixels.npy", "int8.tflite"))
        given.write_bytes(content)
        np.save(images, pixels)
        done = subprocess.run(
            [python, "-c", THEIRS, given, images, out], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode:
            raise SystemExit(done.stdout.decode())
        return out.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="VARIANT:WEIGHTS")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--effort", default="normal")
    parser.add_argument("--every", type=int, default=1, help="judge on every n-th image alone")
    options = parser.parse_args()
    model, side = uncropped(options.model)
    preprocessing = preprocessing_of(model)
    calibration = read(options.calibration, side)[0][::2]
    pixels, labels = (part[:: options.every] for part in read(options.data, side))
    exact = scores_of(model)(pixels)
    right = exact.argmax(1) == labels
    floating = build(prepare(model, preprocessing, FORMS["float32"]), FORMS["float32"])

    def ours() -> bytes:
        form = FORMS["int8"]
        return build(prepare(model, preprocessing, form, calibration, options.effort), form)

    print(f"{options.model}: {right.mean():.1%} of {len(labels)} in Keras; {len(calibration)} calibration images\n")
    print("| int8 by | MB | top-1, % | loss, points (paired 95 %) | agreement, % | seconds to make |")
    print("|---|---:|---:|---:|---:|---:|")
    makers = {"ours": ours, "ai-edge-quantizer": lambda: theirs(options.python, floating, calibration)}
    for name, make in makers.items():
        start = time.perf_counter()
        content = make()
        seconds = time.perf_counter() - start
        answers = TfliteFile(content, name, threads=os.cpu_count() or 1).scores(pixels).argmax(1)
        low, high = paired_interval(right, answers == labels)
        print(
            f"| {name} | {len(content) / 1e6:.2f} | {100 * np.mean(answers == labels):.1f} | {(low + high) / 2:.1f} "
            f"({low:.1f} to {high:.1f}) | {100 * np.mean(answers == exact.argmax(1)):.1f} | {seconds:.0f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
