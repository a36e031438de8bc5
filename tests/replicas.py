"""`python -m tests.replicas`: recipes on one device and on three virtual ones, in one process; prints how far apart.

TensorFlow makes virtual devices before it does anything else, so this is a process of its own.
"""

from __future__ import annotations

import json
import sys
from typing import Any

STEPS = 5
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipping": {"clip_norm": 0.5},
    "accumulation": {"accumulate": 2},
    "moving average": {"ema": 0.9},
    "adamw": {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05},
    "lamb": {"optimizer": "lamb", "learning_rate": 1e-2, "loss": "bce"},
    "all": {"clip_norm": 0.5, "accumulate": 2, "ema": 0.9, "label_smoothing": 0.1, "mixup": 0.2},
}


def main(names: list[str]) -> dict[str, dict[str, float]]:
    import numpy as np
    import tensorflow as tf

    cpus = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 3)
    from keras_resnet.training import Recipe, open_images
    from keras_resnet.training.session import open_session
    from keras_resnet.training.strategy import Place, open_place

    training, held_out, *_ = open_images("digits").balanced_sample(180).split(0.5)
    mirrored = open_place("mirrored")
    assert mirrored.replicas == 3
    differences = {}
    for name in names:
        # 90 images in batches of 32: the last has 26, which neither 3 nor 4 divides.
        settings: dict[str, Any] = {"network": {"momentum": 0.5}, "image_size": 16, "batch_size": 32, "epochs": 9}
        recipe = Recipe("cifar_resnet8", **{**settings, "warmup_epochs": 1.0, "synchronized": True, **CASES[name]})
        object.__setattr__(recipe, "precision", "float64")  # for which no recipe is
        found = []
        for place in (Place(), mirrored):
            session = open_session(recipe, training, held_out, place)
            batches = session.batches(0)
            losses = [session.step(step, batches) for step in range(STEPS)]
            values = session.captured(STEPS, []).values
            weights = np.concatenate([v.ravel() for k, v in values.items() if k.startswith(("model", "average"))])
            found.append((np.asarray(losses), weights, session.validate()))
        (losses, weights, judged), (losses3, weights3, judged3) = found
        differences[name] = {
            "loss": float(np.max(np.abs(losses3 / losses - 1))),
            "weights": float(np.max(np.abs(weights3 - weights)) / np.max(np.abs(weights))),
            "val_loss": abs(judged3["val_loss"] / judged["val_loss"] - 1),
            "val_accuracy": abs(judged3["val_accuracy"] - judged["val_accuracy"]),
        }
    return differences


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:] or list(CASES))))
