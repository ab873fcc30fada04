"""The benchmarks' sections and data, and the harness from end to end on a few hundred digits."""

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
from benchmarks.bench import take_turns
from benchmarks.contenders import replayed, seeds, several_seeds
from benchmarks.data import resize, write_idx
from benchmarks.on_gpu import OnGpu, Replayed, WarmSpeedrun
from benchmarks.parts import ALONE, MOBILE, NATIVE, PORTABLE, Parts
from benchmarks.process import Sample, measure
from benchmarks.results import Result, document
from benchmarks.sections import Contenders, Growth, Imports, Nothing, Recording
from benchmarks.several_seeds import SeedLoops, SeedStages, in_sequence
from classifier.data.dataset import read_meta, read_split
from classifier.runs.comparison import compare
from classifier.runs.leaderboard import leaderboard
from classifier.runs.reading import all_runs, find_run, predictions
from classifier.training.graph import GraphedSteps
from classifier.training.loop import train_one
from tests.recorded import Workspace, get_run
from tests.samples import ROOT, digits_split, file_params, train_params, write_digits

pytestmark = pytest.mark.slow


def sample(wall_s: float, loop_s: float) -> Sample:
    return Sample(wall_s, wall_s, 100.0, {"loop_s": loop_s})


class PreparedBench:
    """A bench whose processes are never run."""

    device, quick = "cpu", True

    def __getattr__(self, name: str) -> object:
        return (
            (lambda *_, **__: sample(5, 4))
            if name
            in (
                "tutorial",
                "contender",
                "ours",
                "unrecorded",
                "say",
                "python",
                "module",
                "normalize",
                "stage",
                "write_params",
            )
            else self
        )


def test_contenders_compares_loops() -> None:
    section = Contenders(PreparedBench())  # type: ignore[arg-type]
    samples = {name: [sample(20, 10)] * 3 for name in section.processes} | {
        "ours": [sample(9, loop) for loop in (3.0, 5.0, 3.0)]
    }
    for faster, slower, name in (("bare_nhwc", "bare_nchw", "channels-last"), ("bare_nchw", "bare_nhwc", "NCHW")):
        samples[slower] = [sample(5, loop) for loop in (5.0, 1.0, 8.0)]
        samples[faster] = [sample(5, loop) for loop in (4.0, 2.0, 9.0)]
        result = section.results(samples)
        assert [(bar.value, bar.limit, bar.met) for bar in result.bars] == [(0.75, 1.03, True), (0.3, 0.25, False)]
        assert result.bars[0].what == f"our loop / bare, {name} (the faster memory format)"
        assert len(result.tables[0].rows) == len(section.processes)


def test_growth_takes_the_whole_of_mnist_from_ours(tmp_path: Path) -> None:
    class Folder(PreparedBench):
        quick = False

        def __init__(self) -> None:
            self.project, self.folder = self, tmp_path

        def write_params(self, *arguments: object, **sections: object) -> None: ...

        def resize(self, images: int) -> None:
            (tmp_path / f"data/{images}").mkdir(parents=True)
            (tmp_path / f"data/{images}/train.safetensors").write_bytes(b"x" * images)

    section = Growth(Folder())  # type: ignore[arg-type]
    loops = {"images x1": 1, "images x2": 2, "epochs x2": 2, "epochs x4": 4, "images x8": 8, "epochs x8": 8, "ours": 5}
    assert list(section.processes) == list(loops)
    samples = {
        name: [Sample(9, 9, 100.0, {"loop_s": loop, "loop_peak_mib": 50 + loop})] for name, loop in loops.items()
    }
    images, epochs, _ = section.results(samples).bars
    assert images.value > 0.05
    assert epochs.value == pytest.approx(0)


def test_imports_compares_what_is_outside_the_loop() -> None:
    section = Imports(PreparedBench())  # type: ignore[arg-type]
    walls = {"import torch": 2, "import mlflow": 1, "import torch, mlflow": 2.5}
    samples = {name: [sample(wall, 4)] for name, wall in walls.items()}
    result = section.results(samples | {"ours": [Sample(10, 10, 100.0, {"loop_s": 4, "waiting": 0.5})]})
    assert [bar.value for bar in result.bars] == [2]


def test_recording_is_estimated_and_timed() -> None:
    section = Recording(PreparedBench())  # type: ignore[arg-type]
    said = [
        {"loop_s": loop, "unrecorded_s": 2.0, "waited_s": 0.01, "threads_s": 0.02, "recorder_s": 0.03}
        for loop in (4.0, 6.0, 2.0)
    ]
    result = section.results({"unrecorded": [Sample(9, 9, 100.0, figures) for figures in said]})
    assert [(bar.value, bar.met) for bar in result.bars] == [(pytest.approx(0.06 / 4), True), (2, False)]
    assert result.tables[0].rows[-1][1].startswith("2.000")


def test_several_seeds_are_compared_with_trainings_in_sequence_and_on_a_gpu_with_one() -> None:
    bench = PreparedBench()
    for device, stages, loops, limit in (
        (
            "cpu",
            ["2 train stages in sequence", "1 train stage, 2 seeds"],
            ["2 trainings in sequence in one process", "2 seeds, loops only"],
            0.75,
        ),
        (
            "cuda",
            ["1 train stage, 1 seed", "1 train stage, 64 seeds"],
            ["1 training, loop only", "64 seeds, loops only"],
            4,
        ),
    ):
        bench.device = device
        for section, names in ((SeedStages(bench), stages), (SeedLoops(bench), loops)):  # type: ignore[arg-type]
            assert list(section.processes) == names
            result = section.results({names[0]: [sample(8, 4)], names[1]: [sample(6, 3)]})
            assert [(bar.what, bar.value, bar.limit) for bar in result.bars] == [
                (f"{names[1]} / {names[0]}", 0.75, limit)
            ]


def test_stages_in_sequence_take_the_time_of_all_of_them() -> None:
    assert in_sequence([Sample(2, 3, 50), Sample(4, 5, 40)]) == Sample(6, 8, 50)


def test_every_seed_in_sequence_is_a_whole_stage_of_its_own() -> None:
    class Written(PreparedBench):
        project: object

        def __init__(self) -> None:
            self.project, self.written, self.ran = self, [], []

        def write_params(self, path: str, recipe: str, train: dict[str, object]) -> None:
            self.written.append((train["seed"], train["seeds"]))

        def module(self, name: str, *arguments: str) -> Sample:
            self.ran.append(name)
            return sample(5, 4)

    bench = Written()
    for process in SeedStages(bench).processes.values():  # type: ignore[arg-type]
        process()
    assert bench.written == [(0, 1), (1, 1), (0, 2)]
    assert bench.ran == ["stages.train"] * 3


@pytest.mark.parametrize("kind", [Replayed, WarmSpeedrun])
def test_without_a_gpu_nothing_of_it_is_run(kind: type[OnGpu]) -> None:
    section = kind(PreparedBench())  # type: ignore[arg-type]
    assert not section.processes
    assert section.results({}) == Result((), ())


def test_replays_are_compared_with_the_loop_and_with_compiled_kernels() -> None:
    bench = PreparedBench()
    bench.device = "cuda"
    section = Replayed(bench)  # type: ignore[arg-type]
    said = {
        "deterministic": {"loop_s": 4.4, "replay_s": 4.0},
        "free": {"loop_s": 4.0, "replay_s": 4.0},
        "compiled": {"loop_s": 3.0, "replay_s": 2.0, "compile_s": 20.0},
    }
    assert list(section.processes) == list(said)

    def result() -> Result:
        return section.results({name: [Sample(9, 9, 100.0, figures)] for name, figures in said.items()})

    assert [(bar.value, bar.met) for bar in result().bars] == [(pytest.approx(1.1), True)]
    assert [row[-2:] for row in result().tables[0].rows] == [["1.10", "-"], ["1.00", "-"], ["0.75", "20.0"]]
    said["compiled"] = {"problem": "no compiler"}  # type: ignore[dict-item]
    assert result().bars[0].met
    assert result().tables[0].rows[2] == ["compiled: no compiler", "-", "-", "-", "-", "-"]


def test_warm_seeds_have_bars_on_their_means() -> None:
    bench = PreparedBench()
    bench.device = "cuda"
    section = WarmSpeedrun(bench)  # type: ignore[arg-type]
    warm, cold = section.processes
    figures = {"seconds": [0.04, 0.05], "accuracies": [0.98, 0.99]}
    result = section.results({warm: [Sample(9, 9, 100.0, figures)] * 2, cold: [sample(7, 1)]})
    assert [(bar.value, bar.met) for bar in result.bars] == [
        (pytest.approx(0.985), False),
        (pytest.approx(0.045), True),
    ]
    assert result.tables[0].rows == [["2", "98.50% (98.00% to 99.00%)", "0.0450 (0.0400 to 0.0500)", "7.00"]]


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
@pytest.mark.slow
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


def test_every_section_has_its_rounds_and_shares_its_processes() -> None:
    calls: list[str] = []

    class Few(Nothing):
        rounds = 1

        def __init__(self, *names: str) -> None:
            self.processes = {name: lambda name=name: calls.append(name) or sample(2, 1) for name in names}  # type: ignore[misc]

    few, many = Few("a", "b"), Few("b", "c")
    many.rounds = 5
    samples = take_turns([few, many], 3, lambda line: None)
    assert "".join(calls) == "abc" + "bc" + "bc"
    assert {name: len(found) for name, found in samples.items()} == {"a": 1, "b": 3, "c": 3}


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
    (pipeline.training / "metrics.json").write_text('{"parameters": 61706}')
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "only",
    [
        "recording,stages,nothing",
        "commands",
        "images",
        "networks",
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


@pytest.mark.slow
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


def test_parts_compares_each_way_with_its_own_kind() -> None:
    section = Parts(PreparedBench())  # type: ignore[arg-type]
    samples = {name: [sample(20, 10)] * 3 for name in section.processes}
    samples |= {NATIVE: [sample(9, 5)], PORTABLE: [sample(9, 6)], f"{MOBILE}{NATIVE}": [sample(9, 8)]}
    for name, peak in ((PORTABLE, 300.0), (ALONE, 200.0)):
        samples[f"memory: {name}"] = [Sample(9, 9, 1.0, {}, peak)]
    result = section.results(samples)
    assert [bar.value for bar in result.bars] == [0.5, 0.8, 1.2, 0.6, 0.5, 1.5]
    assert len(result.tables[0].rows) == len(section.processes) - 2


def test_memory_of_several_processes_counts_shared_pages_once(tmp_path: Path) -> None:
    code = "import os, time; kept = bytearray(os.urandom(1) * (64 << 20)); os.fork(); time.sleep(1)"
    family = measure([sys.executable, "-c", code], tmp_path, dict(os.environ), family="bytearray").family_mib
    assert 64 < family < 110
