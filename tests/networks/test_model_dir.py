"""The model directory gives back the model that was trained, or refuses clearly."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from classifier.networks.model_dir import read_model, read_model_meta, write_model
from classifier.networks.registry import build
from classifier.project.files import sha256_of
from tests.forgery import write_forged
from tests.samples import digits_split, write_digits


@pytest.fixture
def meta(tmp_path):
    return write_digits(tmp_path / "data")


@pytest.fixture
def folder(tmp_path, meta):
    write_model(tmp_path / "model", {3: build(meta, seed=3)}, 3, meta)
    return tmp_path / "model"


def edit_meta(folder, **values):
    content = json.loads((folder / "meta.json").read_text()) | values
    del content["seal"]
    write_forged(folder / "meta.json", content)


def edit_weights(folder, change):
    state = load_file(folder / "weights.safetensors")
    change(state)
    save_file(state, folder / "weights.safetensors")
    edit_meta(folder, weights_sha256=sha256_of(folder / "weights.safetensors"))


def test_exactly_two_files_and_no_pickle(folder):
    assert {path.name for path in folder.iterdir()} == {"weights.safetensors", "meta.json"}


def test_reloaded_model_agrees_bit_for_bit(folder, meta):
    images = torch.from_numpy(digits_split(33).images)
    assert torch.equal(read_model(folder)(images), build(meta, seed=3).eval()(images))


def test_channels_last_weights_are_the_same_bytes(folder, meta, tmp_path):
    write_model(tmp_path / "other", {3: build(meta, seed=3).to(memory_format=torch.channels_last)}, 3, meta)
    for name in ("weights.safetensors", "meta.json"):
        assert (tmp_path / "other" / name).read_bytes() == (folder / name).read_bytes()


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone(meta):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = build(meta, 1), build(meta, 1), build(meta, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.network.fc1.weight, second.network.fc1.weight)
    assert not torch.equal(first.network.fc1.weight, other.network.fc1.weight)


def test_meta_names_what_serving_needs(folder):
    meta = read_model_meta(folder)
    assert (meta.architecture, meta.channels, meta.dataset) == ("lenet5", 1, "digits")
    assert meta.class_names == [str(digit) for digit in range(10)]
    assert (meta.mean, meta.std) == ([0.24], [0.33])


def test_changed_weights_are_refused(folder):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights.safetensors has SHA-256 .* run dvc repro -f train"):
        read_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["fc1.weight"].view(-1)[7].fill_(float("nan")), "NaN or Inf in fc1.weight"),
        (lambda state: state.pop("fc3.bias"), "does not hold the weights of lenet5"),
        (lambda state: state.update({"fc3.bias": torch.zeros(11)}), "does not hold the weights of lenet5"),
        (lambda state: state.update(extra=torch.zeros(1)), "does not hold the weights of lenet5"),
        (lambda state: state.update({"fc3.bias": torch.zeros(10).double()}), "fc3.bias, which should be torch.float32"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, change, message):
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        read_model(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"architecture": "resnet"},
            r"meta\.json .* cannot be built: there is no network 'resnet'; did you mean resnet",
        ),
        ({"architecture": "resnet18"}, "does not hold the weights of resnet18"),
        ({"architecture": 5}, "corrupt.*architecture: 5"),
        ({"mean": [0.1, 0.2]}, "2 means and 1 stds for 1 channels"),
        ({"channels": 0}, "corrupt"),
        ({"replicas": {"../../secret": "0" * 64}}, "corrupt.*secret"),
        ({"class_names": "0123456789"}, "corrupt"),
        ({"class_names": ["a", "b"]}, "does not hold the weights of lenet5"),
    ],
)
def test_meta_that_does_not_fit_is_refused(folder, values, message):
    edit_meta(folder, **values)
    with pytest.raises(ValueError, match=message):
        read_model(folder)


def test_a_pickle_in_disguise_is_refused(folder):
    torch.save({"fc1.weight": torch.zeros(1)}, folder / "weights.safetensors")  # noqa: TID251, what the test refuses
    edit_meta(folder, weights_sha256=sha256_of(folder / "weights.safetensors"))
    with pytest.raises(ValueError, match="does not hold the weights of lenet5"):
        read_model(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "meta.json"])
def test_missing_files_name_the_stage(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist: run dvc repro train"):
        read_model(folder)
