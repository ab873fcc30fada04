"""McNemar's test and Holm's correction, against scipy and against numbers made by hand."""

import pandas as pd
import pytest
from scipy.stats import binomtest

from classifier.runs.significance import Disagreement, holm, mcnemar, paired


def predictions(labels, predicted):
    return pd.DataFrame({"label": labels, "predicted": predicted})


@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 5), (0, 60), (5, 0), (200, 300), (900, 2100)])
def test_mcnemar_is_the_exact_binomial_test(first, second):
    assert mcnemar(first, second) == pytest.approx(binomtest(first, first + second).pvalue, rel=1e-9)


@pytest.mark.parametrize("equal", [0, 1, 7])
def test_mcnemar_of_equals_is_one(equal):
    assert mcnemar(equal, equal) == 1


def test_mcnemar_refuses_a_negative_count():
    with pytest.raises(ValueError, match="-1 and 3 images: allowed is 0 or more"):
        mcnemar(-1, 3)


def test_paired_counts_what_only_one_gets_right():
    labels = [0, 1, 2, 3, 4]
    first, second = predictions(labels, [0, 1, 2, 0, 0]), predictions(labels, [0, 0, 0, 3, 1])
    assert paired(first, second) == Disagreement(2, 1, mcnemar(2, 1))


def test_paired_refuses_other_images():
    with pytest.raises(ValueError, match="of 2 and 2 images are not of the same images"):
        paired(predictions([0, 1], [0, 1]), predictions([1, 0], [0, 1]))


def test_holm_multiplies_by_how_many_are_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_holm_stops_at_one():
    assert holm([0.9, 0.6]) == [1, 1]
    assert holm([]) == []
