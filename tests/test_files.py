"""Files appear whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keras_resnet.errors import InputError
from keras_resnet.files import check_space, replacing, write_json, write_text


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_files_written_together_appear_together(tmp_path: Path) -> None:
    with replacing(tmp_path / "new" / "a", tmp_path / "new" / "b") as (a, b):
        a.write_text("1")
        b.write_text("2")
        assert not (tmp_path / "new" / "a").exists()
    assert everything_in(tmp_path) == ["new", "new/a", "new/b"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside_changes_nothing_and_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    write_text(tmp_path / "a", "before")
    with pytest.raises(error), replacing(tmp_path / "a") as (scratch,):
        scratch.write_text("half")
        raise error
    assert everything_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_a_file_that_was_not_written_is_an_error_and_the_others_do_not_appear(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a", tmp_path / "b") as (a, _):
        a.write_text("1")
    assert "a" not in everything_in(tmp_path)


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with replacing(tmp_path / "package") as (scratch,):
            scratch.mkdir()
            (scratch / content).write_text(content)
    assert everything_in(tmp_path) == ["package", "package/new"]


def aged(folder: Path) -> None:
    os.utime(folder, (0, 0))


def test_what_a_killed_writer_left_goes_with_the_next_write_and_what_is_being_written_stays(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from keras_resnet.files import replacing
with replacing(Path(sys.argv[1]) / "a") as (scratch,):
    scratch.write_text("half")
    print("inside", flush=True)
    sys.stdin.readline()
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    killed, slow = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    for process in (killed, slow):
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
    killed.kill()
    killed.wait()
    left = sorted(tmp_path.glob(".partial-*"))
    assert len(left) == 2
    write_text(tmp_path / "b", "young ones are left alone")
    assert sorted(tmp_path.glob(".partial-*")) == left
    for folder in left:
        aged(folder)
    write_text(tmp_path / "b", "written")
    assert len(list(tmp_path.glob(".partial-*"))) == 1
    slow.communicate("\n")
    assert everything_in(tmp_path) == ["a", "b"]


def test_json_reads_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2.5, None, "ü"]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": [1, 2.5, None, "ü"]}


def test_a_write_that_the_system_refuses_halfway_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as a full disk would: an OSError in the middle
    try:
        with pytest.raises(OSError, match="too large"):
            write_text(tmp_path / "a", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert everything_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "before"


def test_ctrl_c_between_the_renames_waits_until_all_files_are_there(tmp_path: Path) -> None:
    program = f"""
import os, signal
from keras_resnet import files
rename = os.replace
def interrupted(source, target):
    os.kill(os.getpid(), signal.SIGINT)
    rename(source, target)
os.replace = interrupted
with files.replacing({str(tmp_path / "a")!r}, {str(tmp_path / "b")!r}) as (a, b):
    a.write_text("1"); b.write_text("2")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert everything_in(tmp_path) == ["a", "b"]


def test_too_little_disk_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    check_space(tmp_path / "not" / "yet", 1000)
    with pytest.raises(InputError, match=r"no disk space for .*MB free, about .* needed"):
        check_space(tmp_path / "not" / "yet", 2 * free + 10**9)
    assert everything_in(tmp_path) == []
