"""The programs of a report: that of Python runs here, as it stands on the page; the others name what the file has."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from keras_resnet.export import converter, to_tflite
from keras_resnet.export.artifact import Artifact
from keras_resnet.export.snippets import LANGUAGES, snippets
from tests.test_export import SIDE, convert_here, images_of, network, photographs


@pytest.fixture(params=["int8", "float16"], scope="module")
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    options: dict[str, Any] = {"calibration": images_of(photographs(8))} if request.param == "int8" else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(converter, "run", convert_here)
        return to_tflite(
            network("same padding"),
            tmp_path_factory.mktemp(request.param) / "net.tflite",
            quantize=request.param,
            effort="low",
            min_agreement=0.0,
            **options,
        )


def on_the_page(artifact: Artifact, language: str) -> str:
    page = artifact.report.read_text(encoding="utf-8")
    (text,) = re.findall(rf"<summary>{language}</summary><pre>(.*?)</pre>", page, re.DOTALL)
    return html.unescape(text)


def test_the_python_program_of_a_page_tests_the_file(artifact: Artifact, tmp_path: Path) -> None:
    copy = tmp_path / artifact.path.name
    shutil.copy(artifact.path, copy)
    program = on_the_page(artifact, "Python")

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    result = run()
    assert re.fullmatch(r"this machine: 8 of 8 agree, \d+\.\d ms\n", result.stdout), result.stderr
    whole = copy.read_bytes()
    test = b'"tolerance":0.15,"pictures":[{"pixels":"'
    start = whole.index(test) + len(test)
    copy.write_bytes(whole[:start] + b"AAAA" * 16 + whole[start + 64 :])
    result = run()
    assert "Bad CRC-32 for file 'golden.json'" in result.stderr


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_program_holds_no_name_that_was_to_be_filled_in(artifact: Artifact, language: str) -> None:
    text = snippets(artifact.read())[language]
    assert not set(re.findall(r"[A-Z]+_[A-Z_]+|HEIGHT|WIDTH", text)) - {"DEFAULT"}
    assert "net" in text
    kind = artifact.read()["contract"]["input"]["image"].split()[0]
    if language == "Kotlin":
        assert ("input.putFloat(" in text) == (kind == "float32")
        assert f"{SIDE} * {SIDE}" in text
    if language == "Swift":
        assert ("Data(rgb)" in text) == (kind == "uint8")


@pytest.mark.skipif(shutil.which("node") is None, reason="node, which parses JavaScript, is not installed")
def test_the_javascript_program_is_javascript(artifact: Artifact, tmp_path: Path) -> None:
    program = tmp_path / "app.mjs"
    program.write_text(on_the_page(artifact, "JavaScript"), encoding="utf-8")
    checked = subprocess.run(["node", "--check", str(program)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_manifest_and_the_page_say_which_chips_take_the_file(artifact: Artifact) -> None:
    targets = {one["target"]: one for one in artifact.read()["targets"]}
    assert targets["XNNPACK (CPU)"]["basis"] == "measured here"
    is_int8 = artifact.read()["format"] == "tflite-int8"
    assert targets["XNNPACK (CPU)"]["takes_whole"] is not is_int8  # of int8 QUANTIZE and SOFTMAX stay outside
    assert targets["Edge TPU (Coral)"]["takes_whole"] is is_int8
    assert targets["Edge TPU (Coral)"]["basis"] == "documented, not run"
    page = artifact.report.read_text(encoding="utf-8")
    assert all(html.escape(name) in page for name in targets)
