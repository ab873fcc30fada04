"""How processes are measured from outside, and the parts of a stage from inside."""

import os
import sys
import time
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from threading import Thread

import pytest

from benchmarks.contenders.stage import PARTS, Clock, Instruments
from benchmarks.process import measure


def test_measure_reads_the_last_line_and_the_memory(tmp_path: Path) -> None:
    code = "import json; print('text'); block = b'x' * 2**26; print(json.dumps({'loop_s': 1}))"
    found = measure([sys.executable, "-c", code], tmp_path, os.environ)
    assert found.said == {"loop_s": 1}
    assert found.outside_s == found.wall_s - 1
    assert found.peak_mib > 64


def test_measure_gives_a_terminal_of_which_everything_is_read(tmp_path: Path) -> None:
    code = (
        "import json, os, sys; print('x' * 2**20); print('\\x1b[2K', os.get_terminal_size().columns);"
        "print(json.dumps({'terminal': sys.stdout.isatty(), 'kind': os.environ['TERM']}))"
    )
    command = [sys.executable, "-c", code]
    assert measure(command, tmp_path, os.environ, terminal=True).said == {"terminal": True, "kind": "xterm-256color"}
    with pytest.raises(RuntimeError, match=r"ended with 1:(.|\n)*ZeroDivisionError"):
        measure([sys.executable, "-c", "print('text'); 1 / 0"], tmp_path, os.environ, terminal=True)


def test_measure_shows_why_a_process_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ended with 1:(.|\n)*ZeroDivisionError"):
        measure([sys.executable, "-c", "1 / 0"], tmp_path, os.environ)


def test_functions_that_are_timed_exist() -> None:
    for address in (address for addresses in PARTS.values() for address in addresses):
        module, _, name = address.partition(":")
        assert callable(attrgetter(name)(import_module(module))), address


def test_instruments_change_functions_before_anybody_binds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = "import time\ntime.sleep(0.02)\ndef name(): return 'old'\nclass Kind:\n    def method(self): return 'old'\n"
    (tmp_path / "a_home.py").write_text(home)
    (tmp_path / "a_guest.py").write_text("from a_home import Kind, name\nfound = name(), Kind().method()\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("a_home", "a_guest"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    clock = Clock()
    changes = {address: lambda _: lambda *_: "new" for address in ("a_home:name", "a_home:Kind.method")}
    monkeypatch.setattr(sys, "meta_path", [Instruments(clock, changes), *sys.meta_path])
    assert import_module("a_guest").found == ("new", "new")
    assert clock.seconds["imports"] >= 0.02
    with pytest.raises(AssertionError, match="a_home should not have been imported yet"):
        Instruments(clock, changes)


def test_clock_counts_every_moment_once() -> None:
    clock = Clock()
    start = time.monotonic()
    with clock.part("work"), clock.part("mlflow"):
        time.sleep(0.02)
    with clock.part("writing"):
        pass
    assert clock.seconds["mlflow"] >= 0.02
    assert sum(clock.seconds.values()) <= time.monotonic() - start + 0.01
    assert clock.seconds["work"] < 0.01


def test_clock_is_that_of_one_thread() -> None:
    clock = Clock()
    thread = Thread(target=lambda: clock.timed(time.sleep, "writing")(0.02))
    with clock.part("work"):
        thread.start()
        thread.join()
    assert clock.seconds["work"] >= 0.02
    assert "writing" not in clock.seconds
