from __future__ import annotations

import os
from pathlib import Path

import pytest

from classifier.sources.listing import Folder
from tests.photos import write_files


def listed(folder: Path) -> dict[str, str | None]:
    return {entry.path: entry.problem for entry in Folder(folder).list().entries}


def test_files_come_in_the_order_of_their_paths(tmp_path):
    write_files(tmp_path, dict.fromkeys(("b/2.jpg", "b/10.jpg", "a.png", "B/x", "a/é.png", "a/z.png"), b"x"))
    assert listed(tmp_path) == dict.fromkeys(["B/x", "a.png", "a/z.png", "a/é.png", "b/10.jpg", "b/2.jpg"])
    assert list(listed(tmp_path)) == ["B/x", "a.png", "a/z.png", "a/é.png", "b/10.jpg", "b/2.jpg"]


def test_hidden_files_and_those_of_systems_are_skipped_and_counted(tmp_path):
    names = ["cat/.DS_Store", "cat/._1.jpg", "cat/Thumbs.db", "dog/Desktop.ini", ".git/config", ".git/HEAD"]
    names += ["__MACOSX/cat/._1.jpg", "cat/@eaDir/1.jpg", "cat/1.jpg", "thumbs.db.jpg"]
    write_files(tmp_path, dict.fromkeys(names, b"x"))
    listing = Folder(tmp_path).list()
    assert [entry.path for entry in listing.entries] == ["cat/1.jpg", "thumbs.db.jpg"]
    assert listing.skipped == {"hidden": 3, "Thumbs.db": 1, "Desktop.ini": 1, "__MACOSX": 1, "@eaDir": 1}
    assert listing.empty == ["dog"]


def test_a_link_to_a_file_is_read_and_one_to_a_folder_or_nowhere_is_named(tmp_path):
    outside = write_files(tmp_path / "outside", {"1.jpg": b"content", "more/2.jpg": b"x"})
    folder = write_files(tmp_path / "photos", {"cat/0.jpg": b"x"})
    (folder / "cat/linked.jpg").symlink_to(outside / "1.jpg")
    (folder / "more").symlink_to(outside / "more")
    (folder / "cat/loop").symlink_to(folder)
    (folder / "cat/gone.jpg").symlink_to(outside / "nowhere")
    os.mkfifo(folder / "cat/pipe")
    assert listed(folder) == {
        "cat/0.jpg": None,
        "cat/gone.jpg": "is a symbolic link, but not to a regular file",
        "cat/linked.jpg": None,
        "cat/loop": "is a symbolic link to a folder, which DVC does not follow",
        "cat/pipe": "is not a regular file",
        "more": "is a symbolic link to a folder, which DVC does not follow",
    }
    assert Folder(folder).read("cat/linked.jpg", None, None) == b"content"


def test_odd_names_are_files_and_those_that_are_not_utf_8_are_named(tmp_path):
    write_files(tmp_path, {"a\nb/ 1\t.jpg": b"x", "é/ü.jpg": b"x"})
    os.mkdir(os.fsencode(tmp_path) + b"/c\xff")  # noqa: PTH102
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/c\xff/1.jpg")).write_bytes(b"x")
    assert listed(tmp_path) == {
        "a\nb/ 1\t.jpg": None,
        "c\\xff/1.jpg": "has a name that is not UTF-8",
        "é/ü.jpg": None,
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    write_files(tmp_path, {"cat/1.jpg": b"x", "dog/1.jpg": b"x"})
    (tmp_path / "dog").chmod(0)
    assert listed(tmp_path) == {"cat/1.jpg": None, "dog": "cannot be read: Permission denied"}


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="has 1,099,511,627,776 bytes: allowed are 268,435,456"):
        Folder(tmp_path).read("large", None, None)
