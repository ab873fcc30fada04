from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from classifier.project.files import read_file, replacing, sha256, sha256_of, write_atomic, write_json
from tests.faults.kernel import can_refuse
from tests.samples import ROOT


def test_a_file_is_written_in_a_folder_that_it_makes(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]  # noqa: PTH208


def test_what_fails_leaves_the_old_file_and_nothing_temporary(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    """DVC may link an output to its cache."""
    cached, path = tmp_path / "cached", tmp_path / "file"
    cached.write_bytes(b"cached")
    path.symlink_to(cached)
    write_atomic(path, b"new")
    assert (cached.read_bytes(), path.read_bytes()) == (b"cached", b"new")


def test_equal_values_are_equal_bytes(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": ["é", 0.1]})
    write_json(tmp_path / "b", {"a": ["é", 0.1], "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_text(encoding="utf-8").startswith('{\n  "a": [\n    "é"')


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_no_json(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a", {"loss": value})
    assert list(tmp_path.iterdir()) == []


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(b"abc") == sha256_of(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_made_or_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "a" / "b"
    for number in "12":
        with replacing(folder, "inner") as new:
            (new / number).touch()
            (new / "inner").mkdir()
            assert not folder.exists() or names(folder) == ["1", "inner"]
        assert names(folder) == [number, "inner"]
        assert names(folder.parent) == ["b"]


def test_what_fails_leaves_the_old_folder_and_nothing_temporary(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").touch()

    def interrupted():
        with replacing(folder) as new:
            (new / "new").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (names(folder), names(tmp_path)) == (["old"], ["folder"])


@pytest.mark.parametrize("left", [{".folder.new"}, {".folder.new", "folder"}, {".folder.old", "folder"}])
def test_what_a_killed_process_left_is_removed(tmp_path, left):
    for name in left:
        (tmp_path / name).mkdir()
        (tmp_path / name / "stale").touch()
    with replacing(tmp_path / "folder") as new:
        assert names(new) == []
        (new / "new").touch()
    assert (names(tmp_path / "folder"), names(tmp_path)) == (["new"], ["folder"])


def test_a_process_killed_between_the_two_renames_lost_nothing(tmp_path):
    (tmp_path / ".folder.old").mkdir()
    (tmp_path / ".folder.old" / "old").touch()
    (tmp_path / ".folder.new").mkdir()
    with pytest.raises(ValueError, match="no luck"), replacing(tmp_path / "folder"):
        raise ValueError("no luck")
    assert (names(tmp_path / "folder"), names(tmp_path)) == (["old"], ["folder"])


def test_a_folder_that_holds_other_folders_is_left_alone(tmp_path):
    (tmp_path / "a_file").touch()
    (tmp_path / "sources").mkdir()
    with (
        pytest.raises(ValueError, match="has the folder sources: remove it"),
        replacing(tmp_path, "replicas"),
    ):
        raise AssertionError("reached")
    assert names(tmp_path) == ["a_file", "sources"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "folder").symlink_to(tmp_path / "far" / "away")
    with replacing(tmp_path / "folder") as new:
        (new / "new").touch()
    assert (tmp_path / "folder").is_symlink()
    assert names(tmp_path / "far" / "away") == ["new"]
    assert names(tmp_path) == ["far", "folder"]


def test_only_regular_files_of_an_allowed_size_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="file has 5 bytes: allowed are 4"):
        read_file(tmp_path / "file", 4)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "zero"):
        for read in (sha256_of, lambda path: read_file(path, 5)):
            with pytest.raises(ValueError, match="is not a regular file"):
                read(path)


WATCHED = """
import errno, json, sys
from pathlib import Path
from classifier.project.files import replacing, write_atomic
from tests.faults.kernel import ask

act, refused, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
calls = []

def answer(name, paths):
    call = [name.removesuffix("at2").removesuffix("at"), *(str(Path(path).relative_to(folder)) for path in paths)]
    calls.append(call)
    return errno.EIO if call == refused else 0

said = ""
ask(answer)
try:
    if act == "file":
        write_atomic(folder / "file", b"new")
    else:
        with replacing(folder / "out") as new:
            (new / "new").touch()
except OSError as error:
    said = str(error)
print(json.dumps([calls, said]))
"""


def watched(act, folder, refused=()):
    """Flushes and renames that the kernel was asked for, with `refused` it said EIO to; and what was said then."""
    command = [sys.executable, "-c", WATCHED, act, json.dumps(refused), str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    calls, said = json.loads(ended.stdout)
    return [[re.sub(r"^\.file\..*\.tmp$", "temporary", word) for word in call] for call in calls], said


kernels = pytest.mark.skipif(not can_refuse(), reason="no filter of system calls here")


@kernels
def test_a_file_is_flushed_before_it_gets_its_name_and_the_folder_after(tmp_path):
    calls, said = watched("file", tmp_path)
    assert calls == [["fsync", "temporary"], ["rename", "temporary", "file"], ["fsync", "."]]
    assert said == ""


@kernels
def test_a_folders_name_is_flushed_after_it_took_the_others_place(tmp_path):
    (tmp_path / "out").mkdir()
    calls, said = watched("folder", tmp_path)
    assert calls == [["rename", "out", ".out.old"], ["rename", ".out.new", "out"], ["fsync", "."]]
    assert (said, names(tmp_path)) == ("", ["out"])


@kernels
def test_when_the_names_flush_fails_the_new_one_stands_whole(tmp_path):
    write_atomic(tmp_path / "file", b"old")
    with replacing(tmp_path / "out") as new:
        (new / "old").touch()
    for act in ("file", "folder"):
        assert watched(act, tmp_path, ["fsync", "."])[1] == "[Errno 5] Input/output error"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == [".out.old", "file", "out"]
    with replacing(tmp_path / "out") as new:
        pass
    assert names(tmp_path) == ["file", "out"]


@kernels
def test_when_the_second_rename_fails_alone_the_old_folder_is_back(tmp_path):
    with replacing(tmp_path / "out") as new:
        (new / "old").touch()
    calls, said = watched("folder", tmp_path, ["rename", ".out.new", "out"])
    assert said.startswith("[Errno 5] Input/output error")
    assert calls[-1] == ["rename", ".out.old", "out"]
    assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["old"])


def test_a_new_folder_that_is_gone_leaves_the_old_one(tmp_path):
    with replacing(tmp_path / "out") as new:
        (new / "old").touch()
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "out") as new:
        shutil.rmtree(new)
    assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["old"])
