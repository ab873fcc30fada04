"""What a sweep's words mean, and which are refused."""

import pytest

from classifier.sweeps.grid import canonical, grid
from tests.samples import file_params


def test_all_combinations_the_last_key_varying_quickest():
    assert grid(["train.learning_rate=0.01,5e-2", "train.seed=0..2"], file_params()) == [
        {"train.learning_rate": rate, "train.seed": seed} for rate in (0.01, 0.05) for seed in (0, 1, 2)
    ]


def test_no_words_are_the_params_themselves():
    assert grid([], file_params()) == [{}]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("train.seed=7,0..2,11", [7, 0, 1, 2, 11]),
        ("train.optimizer=sgd, adamw", ["sgd", "adamw"]),
        ("train.nesterov=true,false", [True, False]),
        ("normalize.mean=null,[0.1]", [None, [0.1]]),
        ("train.augment.rotation=10", [10.0]),
        ("download.mirror=../data", ["../data"]),
    ],
)
def test_values_are_read_as_yaml(word, values):
    key = word.partition("=")[0]
    found = [point[key] for point in grid([word], file_params())]
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.seed"], "'train.seed' has no values; expected KEY=VALUES"),
        (["train.seed="], "'train.seed=' has no values"),
        (["train.seed=1,,2"], "'train.seed=1,,2' cannot be read"),
        (["train.seed=1]"], "'train.seed=1]' cannot be read"),
        (["train.seed=0..x"], "train.seed=0..x: '0..x' is not a range; expected two integers"),
        (["train.seed=4..0"], "train.seed=4..0: '4..0' is not a range"),
        (["train.seed=0..99999999999"], "is not a range; .* at most 10,000"),
        (["train.learning_rate=0.1..0.2"], "'0.1..0.2' is not a range"),
        (["train.seed=0..4,2"], "train.seed=0..4,2: 2 is given twice"),
        (["train.learning_rate=0.1,1e-1"], "0.1 is given twice"),
        (["train.seed=1", "train.seed=2"], "train.seed is given twice"),
        (["train.seed=0..9999", "train.epochs=1,2"], "20,000 experiments; allowed are up to 10,000"),
        (["train.sed=1"], "train.sed: unknown key; did you mean train.seed?"),
        (["promote.significance=0.1"], "promote.significance: unknown key"),
        (
            ["train.seed=1", "train.learning_rate=0.1,200"],
            "train.learning_rate: 200 should be less than or equal to 100",
        ),
        (["train.epochs=1.5"], "train.epochs: 1.5 should be a valid integer"),
        (["train.momentum=0.9,0"], "nesterov: true with momentum: 0.0"),
    ],
)
def test_what_is_not_allowed_is_named(words, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?").replace("[", r"\[")) as raised:
        grid(words, file_params())
    assert "\n" not in str(raised.value)


def test_a_point_is_as_params_hold_it():
    assert canonical({"train.learning_rate": 1}, file_params()) == {"train.learning_rate": 1.0}
