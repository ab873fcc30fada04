"""Processes that share a piece of work: they meet, see each other's memory, and none of them is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from classifier import workers
from classifier.errors import UserError
from classifier.workers import Crew
from tests.processes import forks
from tests.samples import ROOT


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_after_a_meeting_all_see_what_each_wrote(size):
    """Every process sums what all have written, again and again, in turns of two rows as `Parts` has them."""
    crew = Crew(size)
    written, sums = crew.share(2, size), crew.share(size)

    def work():
        for turn in range(200):
            written[turn % 2, crew.rank] = turn
            crew.meet()
            sums[crew.rank] += written[turn % 2].sum()

    with crew.working(work):
        work()
    assert sums[0] == size * sum(range(200))
    assert forks() == []


def test_results_of_all_are_there_after_a_last_meeting():
    crew = Crew(3)
    results = crew.share(3)

    def work():
        results[crew.rank] = crew.rank + 1
        crew.meet()

    with crew.working(work):
        work()
        assert results.tolist() == [1, 2, 3]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_ends_the_work(how):
    crew = Crew(3)

    def work():
        for _ in range(3):
            crew.meet()
        if crew.rank == 2:
            os.kill(os.getpid(), how)
        crew.meet()

    with (
        pytest.raises(UserError, match=rf"exited without reporting \(exit status {-how}; .*resumes"),
        crew.working(work),
    ):
        work()
    assert forks() == []


def test_a_process_that_hangs_ends_the_work(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE_S", 1)
    crew = Crew(2)

    def work():
        if crew.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        crew.meet()

    with pytest.raises(UserError, match="has not answered for 1 s and was stopped"), crew.working(work):
        work()
    assert forks() == []


def test_an_error_in_a_process_is_shown_and_ends_the_work(capfd):
    crew = Crew(2)

    def work():
        if crew.rank == 1:
            raise RuntimeError("no memory for the part")
        crew.meet()

    with pytest.raises(UserError, match="exit status 1"), crew.working(work):
        work()
    assert "RuntimeError: no memory for the part" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (lambda: torch.empty(2**50), MemoryError, "you tried to allocate 4503599627370496 bytes"),
        (lambda: Path("/no/such/file").read_bytes(), UserError, "No such file or directory: '/no/such/file'"),
    ],
)
def test_what_the_user_can_fix_in_a_process_is_said_by_the_first_one_alone(body, kind, said, capfd):
    crew = Crew(2)

    def work():
        if crew.rank == 1:
            body()
        crew.meet()

    with pytest.raises(kind, match=said), crew.working(work):
        work()
    assert capfd.readouterr().err == ""


def test_an_error_in_the_first_process_ends_the_others():
    crew = Crew(3)
    with pytest.raises(KeyboardInterrupt), crew.working(crew.meet):
        raise KeyboardInterrupt
    assert forks() == []


WAITING = """
import time
from classifier.workers import Crew
crew = Crew(3)
with crew.working(lambda: (crew.meet(), crew.meet())):
    crew.meet()
    print(*crew.pids.values(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_none_outlives_the_first_process(how):
    with subprocess.Popen([sys.executable, "-c", WAITING], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        process.send_signal(how)
        process.wait()
    end = time.monotonic() + 10
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(map(psutil.pid_exists, pids))


def test_interrupts_are_left_to_the_first_process():
    """Ctrl-C reaches every process of the terminal's group."""
    crew = Crew(2)

    def work():
        if crew.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        crew.meet()

    with crew.working(work):
        work()


def test_shared_memory_takes_no_file(tmp_path):
    assert torch.equal(Crew(2).share(2, 3), torch.zeros(2, 3))
    assert Crew(2).share(0, 3).shape == (0, 3)


def test_a_signal_while_a_process_is_forked_is_not_lost():
    code = """
import os, signal
from classifier.workers import Crew

os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGINT))
crew = Crew(2)
try:
    with crew.working(signal.pause):
        print("not interrupted")
except KeyboardInterrupt:
    print("interrupted", crew.pids)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert (found.stdout, found.stderr) == ("interrupted {}\n", "")
