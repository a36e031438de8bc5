"""Small data sets for tests: folders of pictures whose class is their colour, so that a network learns them at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30)}


def colour_folder(folder: Path, count: int = 12, size: tuple[int, int] = (20, 16), seed: int = 0) -> Path:
    """A folder of class folders of PNG pictures, noise about one colour each; size: (width, height)."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(-30, 30, (size[1], size[0], 3))
            pixels = np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder
