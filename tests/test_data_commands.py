"""`keras-resnet data`: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_resnet import cli
from keras_resnet.training import open_images
from tests.pictures import colour_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_folder(tmp_path_factory.mktemp("data") / "colours")


def test_packing_writes_shards_that_train_and_evaluate_take(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", "pack", str(folder), "--out", str(tmp_path / "p"), "--images-per-shard", "10"]
    assert cli.main(arguments) == 0
    assert "36 images of 3 classes in 4 shards" in capsys.readouterr().out
    assert open_images(tmp_path / "p").hash == open_images(folder).hash
    assert cli.main(arguments) == 0  # again: all is there


def test_some_images_of_each_class_are_packed_where_a_number_is_given(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count, found in ((10, [4, 3, 3]), (1000, [12, 12, 12])):
        out = tmp_path / str(count)
        assert cli.main(["data", "pack", str(folder), "--out", str(out), "--count", str(count)]) == 0
        assert f"{sum(found)} images of 3 classes in 1 shards" in capsys.readouterr().out
        assert np.bincount(open_images(out).labels).tolist() == found
    again = tmp_path / "again"
    assert cli.main(["data", "pack", str(folder), "--out", str(again), "--count", "10"]) == 0
    assert open_images(again).hash == open_images(tmp_path / "10").hash  # the same ones every time


def test_a_check_ends_with_0_for_good_data_and_1_for_bad(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "check", str(folder)]) == 0
    assert "36 files in class folders: nothing found" in capsys.readouterr().out
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    (bad / "red" / "notes.txt").write_text("no picture")
    shutil.copy(bad / "red" / "000.png", bad / "red" / "again.png")
    assert cli.main(["data", "check", str(bad), "--json"]) == 1
    shown = capsys.readouterr()
    assert [f["kind"] for f in json.loads(shown.out)["findings"]] == ["duplicate", "damaged"]
    assert "38 files in class folders: 1 duplicate, 1 damaged" in shown.err
    (tmp_path / "classes.txt").write_text("blue\ngreen\n")
    assert cli.main(["data", "check", str(folder), "--classes", str(tmp_path / "classes.txt")]) == 1
    assert capsys.readouterr().out.startswith("unknown class\t")


def test_what_a_network_sees_is_a_grid_of_its_batch(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seen.png"
    more = ["--recipe", "small-images", "--set", "mixup=1.0", "--set", "seed=3", "--count", "6", "--step", "2"]
    assert cli.main(["data", "show", str(folder), "--out", str(out), *more]) == 0
    assert "6 images of step 2 as small-images sees them" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pak", "digits"], "unknown action 'pak' (data): valid are pack, check, show"),
        (["pack", "digits"], "`data pack` needs --out"),
        (["show", "digits", "--out", "a.gif"], "must end in '.png'"),
        (["show", "digits", "--out", "a.png", "--recipe", "digit"], "unknown recipe 'digit'"),
        (["show", "digits", "--out", "a.png", "--set", "mixup=much"], "mixup='much' must be a number"),
        (["show", "digits", "--out", "a.png", "--count", "0"], "--count 0 from 1 to 100"),
        (["check", "digits", "--out", "x"], "--out is not for `data check`"),
        (["pack", "a", "b", "--out", "x"], "`data pack` takes one source, not 2"),
        (["pack", "digits", "--out", "x", "--images-per-shard", "0"], "images_per_shard=0 must be 1 or more"),
        (["pack", "digits", "--out", "x", "--damaged", "maybe"], "unknown policy 'maybe'"),
        (["pack", "digits", "--out", "x", "--count", "9"], "--count 9 must be 10 or more: an image of each class"),
        (["check", "digits", "--count", "9"], "--count is not for `data check`"),
    ],
)
def test_wrong_use_is_refused_with_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
