"""What it costs to import the package and to ask the command line for help.

    python -m benchmarks.importing --rounds 7

Every figure is the median over fresh processes, one of each kind a round. Ends with 1 where a limit is passed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

# What this package adds to a process that has Keras: its bare import, and the rooms that build and load networks.
ADDED = "import keras, time; start = time.perf_counter(); {touch}; print(time.perf_counter() - start)"
TOUCHES = {
    "import keras_resnet, after keras": "import keras_resnet",
    "from keras_resnet import build, load_model, ..., after keras": (
        "from keras_resnet import build, features, load_model, load_weights, preprocess_input, profile"
    ),
}
HELP = "keras-resnet --help"
BARE = "python -c pass"
LIMITS_S = dict.fromkeys(TOUCHES, 0.05) | {HELP: 0.3}


def seconds_added(touch: str) -> float:
    """Seconds that an import takes in a fresh process in which Keras is there already."""
    command = [sys.executable, "-c", ADDED.format(touch=touch)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def wall_seconds(*command: str) -> float:
    """Seconds from the start of a process to its end."""
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    script = str(Path(sys.executable).parent / "keras-resnet")
    found: dict[str, list[float]] = {name: [] for name in (*TOUCHES, BARE, HELP)}
    for _ in range(options.rounds):
        for name, touch in TOUCHES.items():
            found[name].append(seconds_added(touch))
        found[BARE].append(wall_seconds(sys.executable, "-c", "pass"))
        found[HELP].append(wall_seconds(script, "--help"))
    print("| what | median, s | least, s | limit, s |\n|---|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} | {LIMITS_S.get(name, '')} |")
    return 0 if all(statistics.median(found[name]) <= limit for name, limit in LIMITS_S.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
