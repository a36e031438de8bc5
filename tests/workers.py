"""Several processes on this machine that train together, as many machines would.

`python -m tests.workers STEPS PRECISION RECIPE NUDGED OUT` is one of them, or one alone where TF_CONFIG is not set.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
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


@contextlib.contextmanager
def separate_networks() -> Iterator[tuple[list[str], list[list[str]], list[list[str]]]]:
    """Two networks with nothing but a cable between them, as two machines have: addresses, how a command is started in
    each, and how its end of the cable is pulled.

    Raises OSError where this user or this system cannot make them.
    """
    names = [f"keras-resnet-{os.getpid()}-{i}" for i in range(2)]
    inside = [["ip", "netns", "exec", name] for name in names]
    made: list[str] = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for i, name in enumerate(names):
            _ip("-n", name, "address", "add", f"192.0.2.{i + 1}/24", "dev", "cable")  # of documentation: nobody's
            for device in ("lo", "cable"):
                _ip("-n", name, "link", "set", device, "up")
        hosts = [f"192.0.2.{i + 1}:12345" for i in range(2)]
        yield hosts, inside, [["ip", "-n", name, "link", "set", "cable", "down"] for name in names]
    finally:
        for name in made:  # the cable goes with its ends
            _ip("netns", "delete", name)


def _ip(*words: str) -> None:
    if shutil.which("ip") is None:
        raise OSError("there is no `ip`: install iproute2")
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


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


def trained(
    count: int,
    steps: int,
    folder: Path,
    precision: str = "float32",
    places: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None,
    *,
    nudged: bool = False,
    **recipe: Any,
) -> list[dict[str, Any]]:
    """What each of `count` workers has behind some steps: running losses, and all values of a checkpoint.

    places: the workers' addresses, and the words before each one's command; None for this machine. nudged: whether all
    weights begin at the next number of their type.
    """
    import numpy as np

    outs = [folder / f"{count}-{i}.npz" for i in range(count)]
    command = [sys.executable, "-m", "tests.workers", str(steps), precision, json.dumps(recipe), str(int(nudged))]
    if count == 1:
        subprocess.run([*command, str(outs[0])], check=True)
    else:
        hosts, inside = places or (addresses(count), [[]] * count)
        commands = [[*before, *command, str(out)] for before, out in zip(inside, outs, strict=True)]
        for code, error in ended(start(commands, hosts)):
            assert code == 0, error
    return [dict(np.load(out)) for out in outs]


def main(steps: int, precision: str, changes: dict[str, Any], nudged: int, out: str) -> None:
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
    for variable in session.model.trainable_variables if nudged else ():
        variable.assign(np.nextafter(variable.numpy(), np.inf))
    batches = session.batches(0)
    losses = [session.step(step, batches) for step in range(steps)]
    figures = list(session.validate().values())
    place.wait_for_all()
    np.savez(out, losses=losses, figures=figures, **session.captured(steps, []).values)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
