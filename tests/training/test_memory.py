"""A batch that does not fit: one line, with a size that does."""

import re

import pytest
import torch

from classifier.networks.layers import Costs
from classifier.training import memory
from classifier.training.memory import check_batch, naming_half
from classifier.training.parts import Computation
from tests.samples import train_params

CPU, GIB = torch.device("cpu"), 2**30
COSTS = Costs([], parameters=10, multiply_adds=10, weights_bytes=GIB // 64, activations_bytes=GIB // 128)


def check(free, monkeypatch, processes=2, **values):
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    params = train_params(**({"batch_size": 256, "parts": 2, "optimizer": "adamw"} | values))
    check_batch(params, COSTS, Computation("native", "", params.parts, processes, 1), CPU)


def test_what_is_needed_is_the_weights_and_what_layers_keep(monkeypatch):
    needed = (2 * 4 + 2 * 2) * GIB // 64 + 256 * GIB // 128
    check(needed, monkeypatch)
    with pytest.raises(ValueError, match=r"^train\.batch_size: 256 needs at least 2\.2 GiB, 2\.2 GiB are free"):
        check(needed - 1, monkeypatch)
    check(needed - 1, monkeypatch, processes=1)  # one part after the other
    check(needed - 1, monkeypatch, precision="bfloat16")
    check(needed - 1, monkeypatch, optimizer="sgd")


def test_the_size_and_the_parts_that_are_named_fit(monkeypatch):
    with pytest.raises(ValueError, match=r"batch_size to (\d+) or less, or train\.parts to (\d+)") as caught:
        check(GIB, monkeypatch)
    size, parts = map(
        int, re.search(r"batch_size to (\d+) or less, or train\.parts to (\d+)", str(caught.value)).groups()
    )
    assert (size, parts) == (104, 6)
    check(GIB, monkeypatch, batch_size=size)
    check(GIB, monkeypatch, parts=parts)
    for more in ({"batch_size": size + 1}, {"parts": parts - 1}):
        with pytest.raises(ValueError, match="needs at least"):
            check(GIB, monkeypatch, **more)


@pytest.mark.parametrize(
    ("error", "values", "noted"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            {},
            "set train.batch_size to 128 or less, or train.parts to 4 ",
        ),
        (MemoryError(), {"batch_size": 7}, "set train.batch_size to 3 or less"),  # no part of a single image
        (MemoryError(), {"batch_size": 1}, "set normalize.image_size to fewer pixels, or train.network to a smaller"),
        (RuntimeError("shapes differ"), {}, None),
    ],
)
def test_a_batch_that_does_not_fit_after_all_names_half_of_it(error, values, noted):
    """As on a GPU, where the check before training cannot know what kernels need."""
    params = train_params(**({"batch_size": 256, "parts": 2} | values))
    with pytest.raises(type(error)) as caught, naming_half(params, Computation("native", "", 2, 1, 1)):
        raise error
    notes = getattr(caught.value, "__notes__", [])
    assert [note[: len(noted or "")] for note in notes] == ([noted] if noted else [])


def test_a_network_of_which_one_image_is_too_much_is_said_so(monkeypatch):
    with pytest.raises(
        ValueError, match=r"0\.0 GiB are free: set normalize\.image_size to fewer pixels, or train\.network"
    ):
        check(GIB // 128, monkeypatch)
