"""The benchmarks' contenders and data, and the harness from end to end on a few hundred digits."""

import gzip
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from shutil import copyfile
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision

from benchmarks import many_runs
from benchmarks.contenders import replayed, seeds, several_seeds
from benchmarks.data import resize, write_idx
from benchmarks.process import measure
from benchmarks.results import document
from classifier.data.dataset import read_meta, read_split
from classifier.runs.comparison import compare
from classifier.runs.leaderboard import leaderboard
from classifier.runs.reading import all_runs, find_run, predictions
from classifier.training.graph import GraphedSteps
from classifier.training.loop import train_one
from tests.recorded import Workspace, get_run
from tests.samples import ROOT, digits_split, file_params, train_params, write_digits

pytestmark = pytest.mark.slow


def write_params(path: Path, **train: object) -> str:
    """As params.yaml, with the plain, quick training of `train_params`."""
    params = file_params().model_copy(update={"train": train_params(**train)})
    path.write_text(params.model_dump_json())  # JSON is YAML
    return str(path)


def said_by(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict[str, Any]:
    """What a contender says, run in this process."""
    said: dict[str, Any] = {}
    monkeypatch.setattr(module, "say", lambda **figures: said.update(figures))
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()
    return said


def test_trainings_in_sequence_keep_the_memory_of_their_steps_as_the_train_stage_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits(tmp_path / "data")
    calls = []
    monkeypatch.setattr(several_seeds, "keep_freed_memory", lambda: calls.append("kept"))
    train = several_seeds.train_seeds
    monkeypatch.setattr(several_seeds, "train_seeds", lambda *all: (calls.append(all[1].seed), train(*all)))
    params = write_params(tmp_path / "params.yaml")
    assert said_by(several_seeds, monkeypatch, "cpu", params, tmp_path / "data", 2, "in_sequence")["loop_s"] > 0
    assert calls == ["kept", 0, 0, 1]  # the first one warms up


@pytest.mark.parametrize("with_graph", [False, True])
def test_every_warm_seed_is_the_training_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device, with_graph: bool
) -> None:
    """On a CPU a plain call stands for the graph."""
    if with_graph and device.type == "cpu":
        monkeypatch.setattr(seeds, "make_steps", partial(GraphedSteps, capture=lambda step: step))
    meta = write_digits(tmp_path)
    params = train_params(optimizer="muon", schedule="one_cycle", shift=1, epochs=2, device=device.type)
    trained = [weights for _, weights in seeds.trainings(tmp_path, meta, params, device, 3)]
    for seed, weights in enumerate(trained):
        alone = train_one(tmp_path, seed, params, device, lambda seed, row: None).classifier.network.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in alone.items())
    assert not torch.equal(trained[0]["fc3.weight"], trained[1]["fc3.weight"])
    arguments = (device, write_params(tmp_path / "params.yaml", **params.model_dump()), tmp_path, 3)
    said = said_by(seeds, monkeypatch, *arguments)
    assert [len(said["seconds"]), len(said["accuracies"])] == [3, 3]
    assert all(second > 0 for second in said["seconds"])
    assert all(0 < accuracy < 1 for accuracy in said["accuracies"])


@pytest.mark.parametrize("kind", ["deterministic", "free"])
def test_replays_take_part_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device, kind: str
) -> None:
    write_digits(tmp_path)
    params = write_params(tmp_path / "params.yaml", epochs=2, device=device.type)
    said = said_by(replayed, monkeypatch, device, params, tmp_path, kind)
    assert said.keys() == {"loop_s", "replay_s"}
    assert min(said.values()) > 0


@pytest.mark.gpu
def test_compiled_kernels_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: torch.device) -> None:
    write_digits(tmp_path)
    params = write_params(tmp_path / "params.yaml", epochs=2, device="cuda")
    said = said_by(replayed, monkeypatch, cuda, params, tmp_path, "compiled")
    assert said.keys() in ({"loop_s", "replay_s", "compile_s"}, {"problem"})


def test_a_network_that_cannot_be_compiled_is_a_result_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise RuntimeError("Failed to find C compiler\nmore")

    monkeypatch.setattr(torch.nn.Module, "compile", refused)
    write_digits(tmp_path)
    params = write_params(tmp_path / "params.yaml")
    said = said_by(replayed, monkeypatch, "cpu", params, tmp_path, "compiled")
    assert said == {"problem": "RuntimeError: Failed to find C compiler"}


def test_torchvision_reads_what_we_normalized(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits", train=20)
    write_idx(tmp_path / "digits", tmp_path)
    found = torchvision.datasets.MNIST(tmp_path, train=True)
    assert np.array_equal(found.data.numpy(), digits_split(20).images[:, 0, 2:-2, 2:-2])
    assert np.array_equal(found.targets.numpy(), digits_split(20).labels)


def test_resize_begins_anew(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits", train=20)
    resize(tmp_path / "digits", tmp_path / "other", 50)
    meta = read_meta(tmp_path / "other")
    train = read_split(tmp_path / "other", "train", meta)
    assert np.array_equal(train.images, digits_split(20).images[np.arange(50) % 20])
    assert {name: sum(counts) for name, counts in meta.counts.items()} == {"train": 50, "validation": 0, "test": 0}


def test_copied_runs_have_code_and_predictions_of_their_own(workspace: Path) -> None:
    (workspace / many_runs.CHANGED.parent).mkdir(parents=True)
    copyfile(ROOT / many_runs.CHANGED, workspace / many_runs.CHANGED)
    (workspace / "stages").mkdir()
    for name in ("dvc.yaml", "stages/train.py"):  # the rest of what a run's code is
        copyfile(ROOT / name, workspace / name)
    (workspace / ".gitignore").write_text("/*\n!/classifier/\n!/stages/\n!/dvc.yaml\n")
    author = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "--all"], [*author, "commit", "-q", "-m", "start"]):
        subprocess.run(["git", *command], check=True)
    pipeline = Workspace()
    probabilities = np.eye(10, dtype=np.float32)[np.arange(57) % 10]
    columns = {f"p_{k}": probabilities[:, k] for k in range(10)}
    numbers = {name: np.arange(57) % limit for name, limit in (("index", 57), ("label", 10), ("predicted", 10))}
    pd.DataFrame(numbers | columns).to_parquet(pipeline.reports / "predictions.parquet", index=False)
    (pipeline.reports / "per_class.csv").write_text("name\n" + "\n".join("abcdefghij"))
    (pipeline.training / "summary.json").write_text('{"parameters": 61706}')
    pipeline.train()
    run = pipeline.evaluate()
    (Path(unquote(urlparse(get_run(run).info.artifact_uri).path)) / "code/environment.json").write_text(
        '{"packages": {}}'
    )

    many_runs.fill(workspace / "mlflow.db", 41)
    runs = all_runs()
    assert len(runs) == 41
    assert (runs["tags.git.dirty"] == "true").sum() == 20
    assert runs["tags.git.commit"].nunique() == 2
    assert runs["tags.mlflow.classifier.code"].nunique() == 2 + 2 * many_runs.CHANGES
    board = leaderboard(runs)
    assert len({entry.code for entry in board.entries}) == 2 + 2 * many_runs.CHANGES
    assert all(f"{entry.code_id[:8]}" in entry.code for entry in board.entries if "+" in entry.code)
    clean, changed = (runs.index[runs["tags.git.dirty"] == value][0] for value in ("false", "true"))
    compared = compare([find_run(clean), find_run(changed)])
    assert compared.code[0].diff
    assert compared.results
    assert len(compared.results.disagreements)
    assert not compared.problems
    for run in (clean, changed):
        assert predicted_accuracy(find_run(run)) == find_run(run).data.metrics["test/accuracy"]


def predicted_accuracy(run: Any) -> float:
    table = predictions(run)
    probabilities = table.filter(regex=r"^p_").to_numpy()
    assert np.array_equal(probabilities.argmax(1), table["predicted"])
    return float((table["predicted"] == table["label"]).mean())


@pytest.mark.parametrize(
    "only",
    [
        "recording,stages,nothing",
        "commands",
        "images",
        "networks",
        "photos",
        "replica_stages,replica_loops,replayed,warm_speedrun",
    ],
)
def test_harness_from_end_to_end(tmp_path: Path, only: str) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", only, "--results", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # it tries the harness, and other tests run beside it
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.json")
    kept = json.loads(path.read_text())
    assert list(kept) == only.split(",")
    assert path.with_suffix(".md").read_text() == document(kept)
    assert document(kept) in done.stdout
    for section in kept.values():
        assert all(sample["wall_s"] > 0 for samples in section["samples"].values() for sample in samples)


@pytest.mark.mnist
def test_tutorial_reads_the_official_files(tmp_path: Path, mnist_folder: Path) -> None:
    from benchmarks.bench import RECIPE
    from benchmarks.project import Project

    project = Project(tmp_path, str(mnist_folder))
    project.write_params("data/params.yaml", RECIPE)
    project.module("stages.download", "data/params.yaml", "data/raw")
    project.module("stages.normalize", "data/params.yaml", "data/raw", "data/normalized", "data/report")
    project.module("benchmarks.data", "idx", "data/normalized", "data/torchvision")
    for path in mnist_folder.glob("*-ubyte.gz"):
        written = tmp_path / "data/torchvision/MNIST/raw" / path.stem
        assert written.read_bytes() == gzip.decompress(path.read_bytes())


def test_memory_of_several_processes_counts_shared_pages_once(tmp_path: Path) -> None:
    code = "import os, time; kept = bytearray(os.urandom(1) * (64 << 20)); os.fork(); time.sleep(1)"
    family = measure([sys.executable, "-c", code], tmp_path, dict(os.environ), family="bytearray").family_mib
    assert 64 < family < 110
