"""Several processes on this machine that train together, as many machines would.

`python -m tests.workers STEPS PRECISION RECIPE OUT` is one of them, or one alone where TF_CONFIG is not set.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COUNT = 90  # of digits, for a last batch that is smaller
SECONDS = 240.0  # more than any of these takes; two would wait for each other for ever


def addresses(count: int) -> list[str]:
    """Free addresses of this machine."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    found = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return found


def start(commands: Sequence[Sequence[str]], hosts: Sequence[str]) -> list[subprocess.Popen[str]]:
    """A worker for each command, at the addresses `hosts`."""
    processes = []
    for index, command in enumerate(commands):
        config = {"cluster": {"worker": list(hosts)}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(list(command), env=environment, **pipes))
    return processes


def ended(processes: Sequence[subprocess.Popen[str]], seconds: float = SECONDS) -> list[tuple[int, str]]:
    """Exit code and stderr of each; SIGKILL for all where one does not end, for nothing else ends it for certain."""
    try:
        return [(p.returncode, error) for p in processes for _, error in [p.communicate(timeout=seconds)]]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


def trained(count: int, steps: int, folder: Path, precision: str = "float32", **recipe: Any) -> list[dict[str, Any]]:
    """What each of `count` workers has behind some steps: running losses, and all values of a checkpoint."""
    import numpy as np

    outs = [folder / f"{count}-{i}.npz" for i in range(count)]
    command = [sys.executable, "-m", "tests.workers", str(steps), precision, json.dumps(recipe)]
    if count == 1:
        subprocess.run([*command, str(outs[0])], check=True)
    else:
        for code, error in ended(start([[*command, str(out)] for out in outs], addresses(count))):
            assert code == 0, error
    return [dict(np.load(out)) for out in outs]


def main(steps: int, precision: str, changes: dict[str, Any], out: str) -> None:
    import numpy as np

    from keras_resnet.training import Recipe, open_images
    from keras_resnet.training.session import open_session
    from keras_resnet.training.strategy import open_place

    place = open_place()
    settings = {
        "network": {"momentum": 0.5},
        "image_size": 16,
        "batch_size": 32,
        "augmentation": "affine",
        "epochs": 12,
    }
    recipe = Recipe("cifar_resnet8", **{**settings, "learning_rate": 0.05, "augmentation": "affine", **changes})
    object.__setattr__(recipe, "precision", precision)  # float64, for which no recipe is
    training, held_out, *_ = open_images("digits").balanced_sample(2 * COUNT).split(0.5)
    session = open_session(recipe, training, held_out, place)
    batches = session.batches(0)
    losses = [session.step(step, batches) for step in range(steps)]
    figures = list(session.validate().values())
    place.wait_for_all()
    np.savez(out, losses=losses, figures=figures, **session.captured(steps, []).values)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), sys.argv[4])
