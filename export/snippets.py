"""How an app uses a .tflite file and tests it at its first start: the programs of `assets/app.*`, filled in."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePath
from typing import Any

LANGUAGES = {"Kotlin": "kt", "Swift": "swift", "Python": "py", "JavaScript": "js"}
# What a language says of numbers, by the type of the file's border.
BORDERS: Mapping[str, Mapping[str, str]] = {
    "uint8": {
        "INPUT_BYTES": "1",
        "KOTLIN_STEPS": "val (scale, zeroPoint) = output.quantizationParams().let { it.scale to it.zeroPoint }",
        "SWIFT_STEPS": "let steps = output.quantizationParameters!",
        "PUT_PIXEL": "input.put(byte)",
        "READ_SCORE": "scale * ((raw.get().toInt() and 0xff) - zeroPoint)",
        "PIXELS_AS_DATA": "Data(rgb)",
        "SCORES_OF_DATA": "output.data.map { steps.scale * Float(Int($0) - steps.zeroPoint) }",
    },
    "float32": {
        "INPUT_BYTES": "4",
        "KOTLIN_STEPS": "",
        "SWIFT_STEPS": "",
        "PUT_PIXEL": "input.putFloat((byte.toInt() and 0xff).toFloat())",
        "READ_SCORE": "raw.getFloat()",
        "PIXELS_AS_DATA": "rgb.map(Float.init).withUnsafeBufferPointer { Data(buffer: $0) }",
        "SCORES_OF_DATA": "output.data.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }",
    },
}


def snippets(manifest: Mapping[str, Any]) -> dict[str, str]:
    """By language: a program that asks a file for scores, and lets it test itself; from the file's manifest."""
    kind, _, rest = manifest["contract"]["input"]["image"].partition(" ")
    height, width = rest.strip("[").split(", ")[1:3]
    values = {
        "MODEL_FILE": manifest["file"],
        "MODEL_STEM": PurePath(manifest["file"]).stem,
        "HEIGHT": height,
        "WIDTH": width,
        **BORDERS[kind],
    }
    folder = files("keras_resnet") / "assets"
    return {
        language: _filled((folder / f"app.{suffix}").read_text(encoding="utf-8"), values)
        for language, suffix in LANGUAGES.items()
    }


def _filled(text: str, values: Mapping[str, str]) -> str:
    """A program with its values in place of their names; a line that comes to nothing is left out."""
    lines = []
    for line in text.splitlines(keepends=True):
        for name, value in values.items():
            line = line.replace(name, value)
        lines.append(line)
    return "".join(line for line, was in zip(lines, text.splitlines(), strict=True) if line.strip() or not was.strip())
