"""What an export costs: seconds, memory above the loaded network, what is left behind.

    python -m benchmarks.export_cost --variants resnet50 resnet152 --forms coreml:float16 coreml:int8
    python -m benchmarks.export_cost --variants resnet50 --forms tflite:int8 --images 100

Each export runs in a process of its own, on random weights and, where --images says so, random pictures. TFLite files
are verified on these, Core ML packages are not. "loaded" is the memory that the process holds once the network is
built, "peak" the most that it holds afterwards, "left" the files in its temporary folder at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")


def resident_mb(field: str) -> float:
    """VmRSS, what this process holds, or VmHWM, the most that it held; Linux alone."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def export(variant: str, form: str, path: str, images: int) -> None:
    """Build and export in this process, and print what it took as JSON; form: "tflite:int8"."""
    import numpy as np
    from PIL import Image

    import keras_resnet
    from keras_resnet.export import coreml, to_coreml, to_tflite
    from keras_resnet.export.artifact import size_of
    from keras_resnet.training import Images

    coreml.verify_package = lambda *given: None
    model = keras_resnet.build(variant)
    given = None
    if images:
        side, classes = model.inputs[0].shape[1] * 8 // 7, model.outputs[0].shape[-1]
        pixels = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), np.uint8)
        labels = np.arange(images) % classes
        given = Images("random", tuple(map(str, range(classes))), labels, list(pixels), Image.fromarray)
    package, quantize = form.split(":")
    to_file = {"tflite": to_tflite, "coreml": to_coreml}[package]
    loaded = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the most from here on
    start, before = time.perf_counter(), cpu_seconds()
    artifact = to_file(model, path, quantize=quantize, calibration=given, min_agreement=0.0)
    found = {
        "seconds": time.perf_counter() - start,
        "cpu_s": cpu_seconds() - before,
        "loaded_mb": loaded,
        "peak_mb": resident_mb("VmHWM"),
        "size_mb": size_of(artifact.path) / 1e6,
    }
    print(json.dumps(found))


def cpu_seconds() -> float:
    """Processor time of this process and of those that it waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="*", default=["resnet50", "resnet152"])
    parser.add_argument("--forms", nargs="*", default=["coreml:float16", "coreml:int8"])
    parser.add_argument("--images", type=int, default=0, help="for calibration")
    parser.add_argument("--export", nargs=3, help=argparse.SUPPRESS)  # what the processes are started with
    options = parser.parse_args()
    if options.export:
        export(*options.export, options.images)
        return 0
    print("| network | form | seconds | CPU seconds | loaded, MB | peak, MB | above, MB | size, MB | left |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for variant in options.variants:
        for form in options.forms:
            with tempfile.TemporaryDirectory() as folder:
                temporary = Path(folder) / "temporary"
                temporary.mkdir()
                suffix = {"tflite": "tflite", "coreml": "mlpackage"}[form.split(":")[0]]
                command = [sys.executable, "-m", "benchmarks.export_cost", "--images", str(options.images)]
                command += ["--export", variant, form, str(Path(folder) / "out" / f"a.{suffix}")]
                done = subprocess.run(
                    command,
                    env={**os.environ, "TMPDIR": str(temporary)},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                found = json.loads(done.stdout.splitlines()[-1])
                left = sum(1 for _ in temporary.rglob("*"))
            above = found["peak_mb"] - found["loaded_mb"]
            print(
                f"| `{variant}` | {form} | {found['seconds']:.0f} | {found['cpu_s']:.0f} | {found['loaded_mb']:,.0f} | "
                f"{found['peak_mb']:,.0f} | {above:,.0f} | {found['size_mb']:.1f} | {left} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
