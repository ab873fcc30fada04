"""Which living process owns a folder."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest

from classifier.project.files import write_atomic
from classifier.project.ownership import LOCK, claim, mark, owner_of, owning, release, remove
from tests.faults.kernel import can_refuse
from tests.samples import ROOT

HOLD = "import sys, time; from pathlib import Path; from classifier.project.ownership import owning\n"
HOLD += "with owning(Path(sys.argv[1])): print('mine', flush=True); time.sleep(float(sys.argv[2]))"


@contextmanager
def held(folder, seconds):
    """A process that owns `folder` for some seconds, or until the block kills it."""
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout.readline() == "mine\n"
            yield process
        finally:
            process.kill()


def test_a_mark_is_that_of_one_process():
    host, pid, start = mark().split(":")
    assert (host, int(pid)) == (socket.gethostname(), os.getpid())
    assert float(start) == pytest.approx(psutil.Process().create_time(), abs=0.01)


def test_a_free_folder_is_made_and_owned_until_it_is_released(tmp_path):
    handle = claim(tmp_path / "a/b")
    assert handle is not None
    assert owner_of(tmp_path / "a/b") == mark()
    assert claim(tmp_path / "a/b") is None
    release(handle)
    again = claim(tmp_path / "a/b")
    assert again is not None
    release(again)


def test_what_a_living_process_owns_is_not_to_be_had_until_it_is_killed(tmp_path):
    with held(tmp_path / "work", 60) as process:
        assert claim(tmp_path / "work") is None
        assert owner_of(tmp_path / "work").split(":")[1] == str(process.pid)
    assert (tmp_path / "work" / LOCK).exists()  # its mark stays, and no longer counts
    handle = claim(tmp_path / "work")
    assert handle is not None
    release(handle)


def test_a_process_that_got_the_handle_owns_the_folder_too(tmp_path):
    handle = claim(tmp_path / "work")
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[handle]) as child:
        release(handle)
        assert claim(tmp_path / "work") is None
        child.communicate(b"\n")
    again = claim(tmp_path / "work")
    assert again is not None
    release(again)


def test_a_folder_that_is_removed_may_be_made_anew_at_once(tmp_path):
    first = claim(tmp_path / "work")
    remove(tmp_path / "work")
    second = claim(tmp_path / "work")
    assert second is not None
    release(first)
    assert claim(tmp_path / "work") is None  # the first one's lock was that of another file
    release(second)
    remove(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []


KILLED = "import sys; from pathlib import Path; from classifier.project.ownership import claim, remove\n"
KILLED += "from tests.faults.kernel import refuse\n"
KILLED += "claim(Path(sys.argv[1])); refuse('unlinkat', error=None); remove(Path(sys.argv[1]))"


@pytest.mark.skipif(not can_refuse(), reason="no filter of system calls here")
def test_what_a_process_left_that_was_killed_while_it_removed_a_folder_goes_with_the_next_one(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "work")]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGSYS
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".removed")
    (tmp_path / ".mine.removed").mkdir()
    with owning(tmp_path / "other"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".mine.removed"]


def test_several_may_remove_what_is_left_at_once(tmp_path):
    for number in range(20):
        left = tmp_path / f".{number:032x}.removed"
        for name in range(50):
            write_atomic(left / str(name % 5) / str(name), b"")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(remove, [tmp_path / f"work-{number}" for number in range(4)]))
    assert not list(tmp_path.iterdir())


def test_owning_waits_and_says_for_whom(tmp_path, capsys):
    with held(tmp_path / "work", 1) as process:
        begin = time.monotonic()
        with owning(tmp_path / "work"):
            assert time.monotonic() - begin > 0.5
            assert owner_of(tmp_path / "work") == mark()
        assert process.wait() == 0
    assert not (tmp_path / "work").exists()
    assert capsys.readouterr().err == f"waiting for process {process.pid}, which does the same in this folder\n"
