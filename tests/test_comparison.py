"""Several exports beside each other: the page about a folder, and the command that fills one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from keras_resnet.cli import main
from keras_resnet.errors import InputError
from keras_resnet.export import compare
from tests.test_export import converter_here, images_of, network, photographs  # noqa: F401

pytestmark = pytest.mark.usefixtures("converter_here")


def manifest(file: str, **changes: Any) -> dict[str, Any]:
    found = {
        "data": "photos",
        "agreement": 0.98,
        "agreement_interval": [0.97, 0.99],
        "model_top1": 0.75,
        "model_interval": [0.72, 0.78],
        "file_top1": 0.745,
        "file_interval": [0.71, 0.77],
        "latency": {"median_ms": 2.5},
    }
    return {
        "file": file,
        "format": "tflite-int8",
        "size_bytes": 11_000_000,
        "model": {"name": "resnet18"},
        "accuracy_verified": True,
        "verification": found,
        **changes,
    }


def write(folder: Path, value: dict[str, Any]) -> None:
    folder.joinpath(value["file"]).write_bytes(b"file")
    folder.joinpath(value["file"]).with_suffix(".json").write_text(json.dumps(value))


def test_a_page_has_a_row_for_each_file_and_bars_in_proportion(tmp_path: Path) -> None:
    write(tmp_path, manifest("a.tflite"))
    write(tmp_path, manifest("b.tflite", size_bytes=44_000_000, format="tflite-float32"))
    coreml = manifest("c.mlpackage", format="coreml-float16", size_bytes=22_000_000)
    coreml["verification"]["latency"] = None
    write(tmp_path, coreml)
    page = compare(tmp_path).read_text(encoding="utf-8")
    assert page.count("74.50 %") == 3
    assert [page.count(f"width:{share}") for share in ("25.0%", "50.0%")] == [1, 1]
    assert page.count("width:100.0%") == 3  # the largest file, and both latencies
    assert page.count("not run here") == 1
    assert page.index("b.tflite") < page.index("c.mlpackage")
    assert 'href="c.html"' in page


def test_what_was_not_verified_is_said(tmp_path: Path) -> None:
    write(tmp_path, manifest("a.tflite", verification=None))
    write(tmp_path, manifest("b.tflite", accuracy_verified=False))
    page = compare(tmp_path).read_text(encoding="utf-8")
    assert page.count("not verified") == 3 + 2


def test_a_folder_without_exports_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no export"):
        compare(tmp_path)
    (tmp_path / "a.tflite").write_bytes(b"file")
    with pytest.raises(InputError, match="has no readable manifest"):
        compare(tmp_path)


def test_several_formats_go_into_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "net.keras"
    network("same padding").save(model)
    photos = tmp_path / "photos.npz"
    save(photos)
    out = tmp_path / "out"
    common = ["--out", str(out), "--calibration", str(photos), "--effort", "low", "--min-agreement", "0"]
    assert main(["export", str(model), "--quantize", "float16,int8", *common]) == 0
    printed = capsys.readouterr().out.split()
    assert [Path(line).name for line in printed] == [
        "cifar_resnet8-float16.tflite",
        "cifar_resnet8-int8.tflite",
        "report.html",
    ]
    assert all(Path(line).is_file() for line in printed)
    page = out.joinpath("report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"tflite-(?:int8|float16)", page)) == {"tflite-int8", "tflite-float16"}


def save(path: Path) -> None:
    import numpy as np

    np.savez(path, images=photographs(8), labels=np.arange(8) % 5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--quantize", "int8,float16", "--out", "a.tflite"], "makes 2 files: give a folder"),
        (["--quantize", "int8,floot16", "--out", "a"], "'floot16'"),
        (["--quantize", "int8,", "--out", "a"], "number format"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "nothing.keras", *arguments]) == 2
    assert said in capsys.readouterr().err
