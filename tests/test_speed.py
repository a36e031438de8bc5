"""How fast files answer, and which of two is faster."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_resnet import cli
from keras_resnet.errors import InputError, UsageError
from keras_resnet.export import benchmark, converter, to_tflite
from keras_resnet.export.latency import Latency, measure
from keras_resnet.export.verification import TfliteFile
from tests.test_export import convert_here, images_of, network, photographs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small network, and one of twice the width."""
    folder = tmp_path_factory.mktemp("speed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(converter, "run", convert_here)
        return tuple(
            to_tflite(network("basic", widths=widths), folder / f"{widths[0]}.tflite", quantize="float32").path
            for widths in ((8, 16), (64, 128))
        )


def test_a_file_is_timed_and_what_it_needs_is_said(files: tuple[Path, Path]) -> None:
    (found,) = benchmark(files[0], runs=10).files
    assert found.size_bytes == files[0].stat().st_size
    details = TfliteFile(files[0], "a").interpreter._get_ops_details()
    kinds = [node["op_name"] for node in details if node["op_name"] != "DELEGATE"]
    assert found.operations == {kind: kinds.count(kind) for kind in set(kinds)}
    assert 0 < found.latency.median_ms <= found.latency.p95_ms
    assert found.latency.runs == 10
    assert found.open_ms > 0
    assert 0 < found.memory_mb < 500


def test_two_files_answer_in_turn_and_the_larger_is_slower(files: tuple[Path, Path]) -> None:
    found = benchmark(files[1], files[0], runs=20)
    assert [Path(one.file) for one in found.files] == [files[1], files[0]]
    assert found.ratio is not None
    assert found.ratio_interval is not None
    assert found.ratio_interval[0] <= found.ratio <= found.ratio_interval[1]
    assert found.ratio_interval[0] > 1  # 64 times the arithmetic


def test_runs_alternate(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(TfliteFile, "answer", lambda self, image: order.append(self.name))
    benchmark(*files, runs=10)
    assert order == [str(file) for file in files] * 15


def test_latency_is_that_of_a_call() -> None:
    ticks = iter(np.arange(0, 1000, 0.002))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: next(ticks))
        found = measure(lambda: None, runs=20)
    assert found == Latency(pytest.approx(2.0), pytest.approx(2.0), 20)


@pytest.mark.parametrize(
    ("options", "said"), [({"threads": 0}, "threads=0 must be from 1"), ({"runs": 3}, "runs=3 must be 10 or more")]
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str, files: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match=said):
        benchmark(files[0], **options)


@pytest.mark.parametrize("content", [None, b"", b"no model", b"\x1c\0\0\0TFL3" + bytes(100)])
def test_what_is_no_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.tflite").write_bytes(content)
    with pytest.raises(InputError, match="a.tflite"):
        benchmark(tmp_path / "a.tflite")


def test_the_command_prints_a_table_or_json(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", *map(str, files), "--runs", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["file"] for one in found["files"]] == [str(file) for file in files]
    assert found["ratio"] < 1
    assert cli.main(["benchmark", str(files[0]), "--runs", "10"]) == 0
    shown = capsys.readouterr().out
    assert "median" in shown
    assert "CONV_2D 6" in shown
    assert "times" not in shown
    assert cli.main(["benchmark", *map(str, files), "--runs", "10"]) == 0
    assert "the first takes 0." in capsys.readouterr().out


def test_images_are_those_of_a_calibrated_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter, "run", convert_here)
    images = images_of(photographs(8))
    path = to_tflite(network("basic"), tmp_path / "a.tflite", calibration=images, min_agreement=0, effort="low").path
    assert "QUANTIZE" in benchmark(path, runs=10).files[0].operations
