"""Tests that are started in the background (`nohup`, `&`, cron): SIGINT is ignored there, and zombies may be around."""

import os
import signal
import subprocess
import sys

import psutil

from tests.processes import words_of
from tests.samples import ROOT


def test_a_process_that_a_test_starts_ends_by_sigint():
    """As in `test_cli`, whatever the shell that started the tests has made of the signal."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'pytest', '-q', *sys.argv[1:]], check=True)"
    ignoring = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {code}"
    test = "tests/project/test_cli.py::test_signals_unwind_quietly"
    command = [sys.executable, "-c", ignoring, "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_command_line_of_a_process_that_has_ended_is_empty():
    process = subprocess.Popen([sys.executable, "-c", ""])
    found = psutil.Process(process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert found.status() == psutil.STATUS_ZOMBIE
    assert words_of(found) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert words_of(found) == []
    assert words_of(psutil.Process())[1:]
