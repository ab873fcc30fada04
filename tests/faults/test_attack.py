"""The count of the attacks themselves: a case that goes wrong is counted and named, and so is none at all."""

from __future__ import annotations

import pytest

from tests.faults import attack as module
from tests.faults.attack import Attack, cases


def test_a_case_that_goes_wrong_is_counted_and_named_and_the_next_one_is_tried():
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


def test_no_case_is_no_success():
    with pytest.raises(AssertionError, match="no case was run"):
        Attack("row").verdict()


@pytest.mark.parametrize(("percent", "full", "expected"), [(10, 100, 10), (10, 3, 1), (100, 7, 7), (0, 50, 1)])
def test_percent_of_the_cases(monkeypatch, percent, full, expected):
    monkeypatch.setattr(module, "PERCENT", percent)
    assert cases(full) == expected
    chosen = Attack("row").some(range(full))
    assert (len(chosen), chosen) == (expected, sorted(set(chosen)))
    assert chosen == Attack("row").some(range(full)), "the same seed, the same choice"
