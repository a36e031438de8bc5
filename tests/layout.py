"""Lay the packages out as the wheel does: `export` and `training` inside `keras_resnet`.

From a checkout, tools that read source see two folders at the root that belong to no package. `make lint` and the
tests run them on this copy: `python -m tests.layout DEST` makes DEST/keras_resnet.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lay_out(destination: Path, root: Path = ROOT) -> Path:
    """Copy the packages that `root`/pyproject.toml lists to `destination`/keras_resnet; what was there is replaced."""
    setuptools = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    shutil.rmtree(destination / "keras_resnet", ignore_errors=True)
    for package in setuptools["packages"]:
        target = destination.joinpath(*package.split("."))
        target.mkdir(parents=True)
        for source in (root / setuptools["package-dir"][package]).iterdir():
            if source.suffix == ".py" or source.name == "py.typed":
                shutil.copy2(source, target)  # with its time, so that caches of the tools hold
    return destination


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.layout DEST")
    lay_out(Path(sys.argv[1]))
