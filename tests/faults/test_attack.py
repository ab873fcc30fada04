"""The counting of attacks: failed cases are counted and named, and an attack without cases fails."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.faults import attack as module
from tests.faults.attack import Attack, cases, limit
from tests.samples import ROOT

SLEEPER = """
import time
from tests.faults.attack import Attack

def test_cases():
    row = Attack("row")
    try:
        for number in range(3):
            with row.case(number):
                time.sleep(60)
    finally:
        print("cases:", row.run, "problems:", len(row.problems))
"""


def test_a_failed_case_is_counted_and_named_and_the_next_one_runs():
    row = Attack("row")
    with row.case("first"):
        raise OSError("broken")
    with row.case("second"), pytest.raises(ValueError, match="never"):
        pass
    with row.case("third"):
        pass
    assert (row.run, len(row.problems)) == (3, 2)
    with pytest.raises(AssertionError, match=r"(?s)2 of 3 cases.*first: OSError: broken \(.*second: Failed: DID NOT"):
        row.verdict()


def test_a_timeout_of_the_test_ends_it_and_counts_as_a_failed_case(tmp_path):
    path = tmp_path / "test_sleeper.py"
    path.write_text(SLEEPER)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout", "1", f"--rootdir={ROOT}", path]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert ended.returncode == 1
    assert "Failed: Timeout (>1.0s) from pytest-timeout" in ended.stdout, ended.stdout
    assert "cases: 1 problems: 1" in ended.stdout


@pytest.mark.parametrize(("percent", "expected"), [(100, 7200), (50, 3600), (1, 600)])
def test_the_time_limit_follows_the_percentage_of_cases(monkeypatch, percent, expected):
    monkeypatch.setattr(module, "PERCENT", percent)
    assert limit(7200) == expected


def test_an_attack_without_cases_fails():
    with pytest.raises(AssertionError, match="no case was run"):
        Attack("row").verdict()


@pytest.mark.parametrize(("percent", "full", "expected"), [(10, 100, 10), (10, 3, 1), (100, 7, 7), (0, 50, 1)])
def test_percent_of_the_cases(monkeypatch, percent, full, expected):
    monkeypatch.setattr(module, "PERCENT", percent)
    assert cases(full) == expected
    chosen = Attack("row").some(range(full))
    assert (len(chosen), chosen) == (expected, sorted(set(chosen)))
    assert chosen == Attack("row").some(range(full)), "the same seed gives the same selection"
    assert len(Attack("row").some(range(full), least=3)) == max(3, expected)
