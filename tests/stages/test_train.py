"""The train stage: what it refuses and tells, what its run says, and what an interrupted one may change."""

import subprocess
from pathlib import Path

import pytest
import torch

from classifier import device
from classifier.data.dataset import read_meta, write_meta
from classifier.data.pixels import decoder
from classifier.errors import UserError
from classifier.project.files import sha256_of
from classifier.recording import run as recording
from classifier.recording.journal import waiting_journals
from classifier.training import memory
from classifier.training.checkpoint import CHECKPOINTS, Checkpoints
from classifier.training.console import Console
from stages.train import main
from tests.networks.test_registry import write_own  # noqa: F401, a fixture
from tests.samples import StoppedError, file_params, train_params, write_digits

NETWORK = """
import torch
from torch import nn


def net(channels, classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, classes), {layer})
"""


@pytest.fixture
def train(workspace, monkeypatch):
    """`train(folder, **values)`: the stage with these params on 61 digits, in this process and without a recorder."""
    monkeypatch.setattr(recording, "start_recorder", lambda journal: subprocess.Popen(["cat"], stdin=subprocess.PIPE))
    monkeypatch.setattr(recording, "SETTLING_S", 0)
    write_digits(workspace / "data/normalized", train=61)

    def run(folder="out", **values):
        params = file_params().model_copy(update={"train": train_params(**values)})
        Path("params.yaml").write_text(params.model_dump_json())  # JSON is YAML
        main(["params.yaml", "data/normalized", "data/pretrained", f"{folder}/model", f"{folder}/reports"])
        return {path.name: sha256_of(path) for path in Path(folder).rglob("*") if path.is_file()}

    return run


def test_an_interrupted_training_resumes_with_other_values_of_params_that_change_no_bit(train, monkeypatch, capsys):
    first = {"processes": 2, "data": "streamed", "checkpoint_every": 1}
    second = {"processes": 1, "data": "resident", "checkpoint_every": 2}
    plan = {"epochs": 2, "log_every": 2}  # of three steps each
    whole = train("whole", **plan, **first)
    save = Checkpoints.save

    def save_and_stop(self, step, *arguments):
        save(self, step, *arguments)
        self.wait()
        if step == 4:
            raise StoppedError

    for before, after in ((first, second), (second, first)):
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", save_and_stop)
            with pytest.raises(StoppedError):
                train("interrupted", **plan, **before)
        assert not Path("interrupted").exists()
        capsys.readouterr()
        assert train("resumed", **plan, **after) == whole
        assert "resuming at epoch 2 of 2, step 4, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layer", "values", "message"),
    [
        ("nn.Threshold(9, torch.nan)", {}, "the network mine:net gives NaN or Inf for random images before it is"),
        ("nn.BatchNorm1d(classes)", {}, r"train\.batch_size: 30 leaves a batch of a single one of the 61 training"),
        ("nn.Identity()", {"batch_size": 32}, r"train\.batch_size: 32 needs at least .* are free: set "),
    ],
    ids=["network", "last batch", "memory"],
)
def test_what_cannot_be_trained_is_refused_in_one_line_before_there_is_a_run(
    train,
    write_own,  # noqa: F811
    monkeypatch,
    layer,
    values,
    message,
):
    write_own("mine", NETWORK.format(layer=layer))
    if "batch_size" in values:
        monkeypatch.setattr(memory, "free_memory", lambda device: 300_000)
    with pytest.raises(UserError, match=f"^{message}") as caught:
        train(network="mine:net", **values)
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()
    assert not CHECKPOINTS.exists()
    (journal,) = waiting_journals()
    assert journal.begin() is None


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A GPU as the stage sees it until it trains, which raises StoppedError."""

    def stop(*arguments):
        raise StoppedError

    monkeypatch.setattr(device, "pick_device", lambda name, key: torch.device("cuda"))
    monkeypatch.setattr(device, "be_deterministic", lambda device, strictly: None)
    monkeypatch.setattr(device, "describe", lambda device: "cuda, pretended")
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**40)
    monkeypatch.setattr(Console, "__init__", stop)


@pytest.mark.parametrize(("deterministic", "tag"), [(False, "false"), (True, None)])
def test_a_run_on_a_gpu_without_determinism_says_so(train, pretended_gpu, deterministic, tag):
    with pytest.raises(StoppedError):
        train(deterministic=deterministic)
    (journal,) = waiting_journals()
    tags = journal.begin()["tags"]
    assert tags["mlflow.classifier.env.device"] == "cuda, pretended"
    assert tags.get("mlflow.classifier.env.deterministic") == tag


def test_a_run_on_a_cpu_is_deterministic_whatever_params_say(train):
    train(deterministic=False)
    (journal,) = waiting_journals()
    assert "mlflow.classifier.env.deterministic" not in journal.begin()["tags"]


def test_images_of_another_decoder_are_told_and_trained_on(train, capsys):
    data, found = Path("data/normalized"), []
    for known in (decoder(), "Pillow 1.0, libwebp 1"):
        write_meta(data, read_meta(data).model_copy(update={"decoder": known}))
        outputs, told = train(), capsys.readouterr().err
        found.append((outputs, [line for line in told.splitlines() if line.startswith("the images were decoded by ")]))
    (silent, nothing), (warned, (line,)) = found
    assert nothing == []
    assert "decoded by Pillow 1.0, libwebp 1, but Pillow" in line
    assert line.endswith("dvc repro -f normalize lists the images whose pixels change")
    assert warned == silent, "the same model"
