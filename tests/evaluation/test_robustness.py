"""The table of accuracies under corruption, and the metrics that runs are compared by."""

import numpy as np
import pytest

from classifier.evaluation import robustness
from classifier.evaluation.corruptions import KINDS
from classifier.evaluation.metrics import wilson_interval


def test_conditions_are_in_a_fixed_order_whatever_the_params_say() -> None:
    expected = [("noise", strength) for strength in range(1, 6)] + [("jpeg", strength) for strength in range(1, 6)]
    assert robustness.conditions(["jpeg", "noise"]) == expected
    assert robustness.conditions([]) == []


def test_the_table_has_a_row_per_strength_with_its_interval() -> None:
    right = np.arange(4)[None, :] < np.array([4, 3, 2, 1, 0])[:, None]
    table = robustness.table(["blur"], right, 0.9)
    assert table["corruption"].tolist() == ["blur"] * 5
    assert table["strength"].tolist() == [1, 2, 3, 4, 5]
    assert table["images"].tolist() == [4] * 5
    assert table["accuracy"].tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert [tuple(row) for row in table.iloc[:, 4:].values] == [
        wilson_interval(hits, 4, 0.9) for hits in (4, 3, 2, 1, 0)
    ]


def test_each_kind_has_a_metric_and_all_have_one_if_all_were_measured() -> None:
    some = robustness.table(["blur", "noise"], np.repeat([[True], [False]], 5, axis=0), 0.95)
    assert robustness.of_kinds(some) == {"noise": 1, "blur": 0}
    assert robustness.metrics(some) == {"corrupted_accuracy/noise": 1, "corrupted_accuracy/blur": 0}
    every = robustness.table(list(KINDS), np.repeat(np.arange(8) % 2 == 0, 5)[:, None], 0.95)
    kinds = {f"corrupted_accuracy/{kind}": number % 2 == 0 for number, kind in enumerate(KINDS)}
    assert robustness.metrics(every) == {"corrupted_accuracy": 0.5} | kinds
    assert robustness.metrics(robustness.table([], np.zeros((0, 4), dtype=bool), 0.95)) == {}


def test_each_row_of_hits_belongs_to_a_condition() -> None:
    with pytest.raises(ValueError, match="zip"):
        robustness.table(["blur"], np.ones((4, 3), dtype=bool), 0.95)
