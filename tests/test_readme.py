"""What the README says holds: its table of variants, its Python, its commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from keras_resnet import cli
from keras_resnet.specs import VARIANTS
from tests.layout import ROOT
from tests.reference import COUNTS

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_table_of_variants_is_complete_and_its_figures_are_the_published_ones() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\d, ]+) \| (\d+) \| ([\d,]+) \| ([\d,]+) \|$", TEXT, re.MULTILINE)
    assert [row[0] for row in rows] == list(VARIANTS)
    for name, block, depths, pixels, parameters, macs in rows:
        spec, counts = VARIANTS[name], COUNTS[name]
        assert (block, int(pixels)) == (spec.block, spec.input_size)
        assert tuple(map(int, depths.split(", "))) == spec.depths
        assert (int(parameters.replace(",", "")), int(macs.replace(",", ""))) == (counts.params, counts.macs)


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"keras-resnet (\w+)", TEXT))))
def test_every_verb_that_the_readme_names_is_there(verb: str) -> None:
    _, verbs = cli._parser()
    assert verb in verbs


def documented() -> list[str]:
    """Every command of the README and of the scripts of examples/, without its comment and what follows a pipe."""
    scripts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").glob("*.sh"))]
    blocks = [*re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL), *(text.replace("\\\n", " ") for text in scripts)]
    return [line for block in blocks for line in block.splitlines() if line.startswith("keras-resnet ")]


@pytest.mark.parametrize("command", documented())
def test_every_command_that_the_readme_shows_is_understood(command: str) -> None:
    _, *words = shlex.split(command, comments=True)
    assert cli._parse(words).verb == words[0]


@pytest.mark.slow
def test_the_python_of_the_readme_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    Image.new("RGB", (320, 240), "tan").save("cat.jpg")
    assert len(SNIPPETS) == 6
    for snippet in SNIPPETS:
        exec(compile(snippet, "README.md", "exec"), names)
    assert (tmp_path / "digits-int8.tflite").is_file()
    assert (tmp_path / "digits.mlpackage").is_dir()
    for name in ("digits-int8.json", "digits.json"):
        assert (tmp_path / name).is_file()
