from __future__ import annotations

import os
import time

import pytest

from classifier.project.resuming import ABANDONED_S, resumable


def test_a_folder_is_kept_after_a_failure_and_removed_after_a_success(tmp_path):
    def fail() -> None:
        with resumable(tmp_path, "name") as folder:
            (folder / "done").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with resumable(tmp_path, "name") as again:
        assert (again / "done").exists()
        with resumable(tmp_path, "name") as beside:
            assert beside != again
        with resumable(tmp_path, "other") as other:
            assert not (other / "done").exists()
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_resumed_for_long_is_removed(tmp_path):
    old, recent = tmp_path / "a-0", tmp_path / "b-0"
    for folder, age in ((old, ABANDONED_S + 60), (recent, 60)):
        folder.mkdir()
        (folder / "file").touch()
        os.utime(folder / "file", (time.time() - age,) * 2)
    with resumable(tmp_path, "name"):
        pass
    assert list(tmp_path.iterdir()) == [recent]
