from __future__ import annotations

import hashlib
import os

import pytest

from classifier.files import empty_folder, sha256, sha256_of, write_atomic, write_json


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


def test_a_folder_is_made_or_emptied(tmp_path):
    folder = tmp_path / "a" / "b"
    empty_folder(folder)
    assert folder.is_dir()
    (folder / "stale").touch()
    (folder / ".hidden").touch()
    (folder / "link").symlink_to(tmp_path)
    empty_folder(folder)
    assert list(folder.iterdir()) == []
    assert tmp_path.is_dir()


def test_a_folder_that_holds_folders_is_left_alone(tmp_path):
    (tmp_path / "a_file").touch()
    (tmp_path / "sources").mkdir()
    with pytest.raises(ValueError, match="holds the folder sources: remove it"):
        empty_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a_file", "sources"}
