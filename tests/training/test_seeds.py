"""Several seeds beside each other are what each would be alone."""

import json
import os
import re
import subprocess
import sys
from queue import SimpleQueue

import psutil
import pytest
import torch

import classifier.training.seeds
from classifier.errors import UserError
from classifier.networks.model import Classifier, LeNet5
from classifier.networks.model_dir import weights_bytes
from classifier.training import stack as vectorized
from classifier.training.checkpoint import NO_WORK
from classifier.training.history import HistoryRow
from classifier.training.loop import Trained, train_one
from classifier.training.seeds import median_seed, seconds_of, seeds_of, side_by_side, train_in_stacks, train_seeds
from classifier.training.summary import summarize
from tests.processes import words_of
from tests.samples import ROOT, train_params, write_digits

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """So that there are two processes wherever the tests run."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def weights(classifier):
    return torch.cat([parameter.detach().flatten() for parameter in classifier.parameters()])


@pytest.fixture
def data(tmp_path):
    write_digits(tmp_path / "normalized", train=200)
    return tmp_path / "normalized"


@pytest.fixture
def one_thread():
    threads = torch._C.get_num_threads() if hasattr(torch._C, "get_num_threads") else os.cpu_count()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("cores", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_each_of_several_seeds_is_the_seed_trained_alone_bit_for_bit(data, one_thread, monkeypatch, cores):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    params = train_params(seed=5, seeds=3, epochs=2, shift=1, schedule="one_cycle")
    reported = []
    trained = train_seeds(data, params, CPU, lambda seed, row: reported.append((seed, row)))
    assert list(trained) == [5, 6, 7]
    for seed, each in trained.items():
        alone = train_one(data, seed, params, CPU, lambda seed, row: None)
        assert torch.equal(weights(each.classifier), weights(alone.classifier))
        assert each.rows == alone.rows == [row for reporter, row in reported if reporter == seed]


@pytest.mark.parametrize("cores", [1, 2])
def test_seeds_with_batch_normalization_and_averaged_weights_have_the_bytes_of_each_alone(data, monkeypatch, cores):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    params = train_params(seed=5, seeds=2, epochs=2, network="example:small", ema=0.9)
    trained = train_seeds(data, params, CPU, lambda seed, row: None)
    for seed, each in trained.items():
        alone = train_one(data, seed, params, CPU, lambda seed, row: None)
        assert weights_bytes(each.classifier) == weights_bytes(alone.classifier)
        assert each.rows == alone.rows


@pytest.mark.slow
def test_with_more_threads_the_first_steps_agree_to_float32_rounding(data):
    """Sums are made in another order; after seven steps the weights agree to 1e-6."""
    params = train_params(seeds=2)
    beside = train_seeds(data, params, CPU, lambda seed, row: None)[0]
    alone = train_one(data, 0, params, CPU, lambda seed, row: None)
    torch.testing.assert_close(weights(beside.classifier), weights(alone.classifier), rtol=1e-4, atol=1e-6)


def test_on_cuda_seeds_are_trained_in_stacks(data, monkeypatch):
    """On a CPU here, so that the steps are called and not replayed."""
    stacks = []

    def fit_together(classifiers, *arguments):
        stacks.append(list(classifiers))
        vectorized.fit_together(classifiers, *arguments, capture=lambda step: step)

    monkeypatch.setattr(classifier.training.seeds, "fit_together", fit_together)
    monkeypatch.setattr(classifier.training.seeds, "TOGETHER", 2)
    params, reported = train_params(seed=5, seeds=3, epochs=2, shift=1), []
    trained = train_in_stacks(
        data, seeds_of(params), params, CPU, lambda seed, row: reported.append((seed, row)), NO_WORK
    )
    assert stacks == [[5, 6], [7]]
    assert list(trained) == [5, 6, 7]
    for seed, each in trained.items():
        alone = train_one(data, seed, params, CPU, lambda seed, row: None)
        torch.testing.assert_close(weights(each.classifier), weights(alone.classifier), rtol=0, atol=1e-6)
        assert each.rows == [row for reporter, row in reported if reporter == seed]
        assert [row.step for row in each.rows] == [row.step for row in alone.rows]


def test_seconds_of_several_seeds_are_those_of_the_longest_process_or_of_stacks_in_turn(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(classifier.training.seeds, "TOGETHER", 2)
    trained = {
        seed: Trained(None, [HistoryRow(1, 1, 1, 0.1, seconds=seconds)]) for seed, seconds in enumerate([5.0, 2, 4])
    }
    assert seconds_of(trained, train_params(), CPU) == 9  # seeds 0 and 2 in one process
    assert seconds_of(trained, train_params(), torch.device("cuda")) == 9  # seeds 0 and 1 in one stack, then seed 2
    assert seconds_of({0: trained[0]}, train_params(), CPU) == 5


@pytest.mark.parametrize(
    "values",
    [
        {"ema": 0.9},
        {"clip": 1.0},
        {"weights": "validation_loss"},
        {"policy": "trivialaugment"},
        {"freeze": 1},
        {"network": "resnet18"},
        {"data": "streamed"},
        {"compile": True},
    ],
)
def test_seeds_that_no_stack_can_train_are_trained_one_after_another_on_a_gpu(values):
    assert side_by_side(train_params(seeds=3), torch.device("cuda")) == 64
    assert side_by_side(train_params(seeds=3, **values), torch.device("cuda")) == 1


@pytest.mark.gpu
def test_train_seeds_takes_a_stack_on_a_gpu(data, cuda, monkeypatch):
    stacks = []

    def fit_together(classifiers, *arguments):
        stacks.append(list(classifiers))
        vectorized.fit_together(classifiers, *arguments)

    monkeypatch.setattr(classifier.training.seeds, "fit_together", fit_together)
    params = train_params(seed=5, seeds=3, shift=1)
    first, second = (train_seeds(data, params, cuda, lambda seed, row: None) for _ in range(2))
    assert stacks == [[5, 6, 7]] * 2
    for seed in (5, 6, 7):
        assert torch.equal(weights(first[seed].classifier), weights(second[seed].classifier))
        assert first[seed].rows == second[seed].rows
        alone = train_one(data, seed, params, cuda, lambda seed, row: None)
        torch.testing.assert_close(weights(first[seed].classifier), weights(alone.classifier), rtol=0, atol=1e-4)


def test_seeds_follow_the_first():
    assert seeds_of(train_params(seed=5, seeds=3)) == [5, 6, 7]


def test_processes_share_the_cores(data, monkeypatch):
    """Two processes of two threads each on two cores train twenty times slower."""
    started = []
    original = subprocess.Popen.__init__

    def watched(self, command, **options):
        started.append(options["env"]["OMP_NUM_THREADS"])
        original(self, command, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    train_seeds(data, train_params(seeds=2), CPU, lambda seed, row: None)
    assert started == ["2", "2"]


def workers_of(process):
    """Its children that train; beside them multiprocessing may have some of its own."""
    return [child for child in process.children() if "classifier.training.seeds" in words_of(child)]


def test_a_process_without_memory_is_said_once(data, monkeypatch, capfd):
    """Its stage says it with what is free; the process itself, which knows the seed, says nothing else."""
    monkeypatch.setattr(classifier.training.seeds, "train_one", lambda *arguments: torch.empty(2**50))
    job = {"data": str(data), "folder": "", "seeds": [3], "params": train_params().model_dump()}
    job |= {"work": None, "pretrained": None}
    classifier.training.seeds._work([json.dumps(job)])
    out, err = capfd.readouterr()
    assert err == ""
    reports = SimpleQueue()
    with subprocess.Popen(["echo", out], stdout=subprocess.PIPE, text=True) as process:
        classifier.training.seeds._follow(process, reports)
    error = reports.get()
    assert isinstance(error, MemoryError)
    assert re.match(r"seed 3: .*you tried to allocate 4503599627370496 bytes", str(error))


def test_an_error_names_the_seed_and_ends_the_other_processes(data):
    params = train_params(seeds=2, learning_rate=100.0, epochs=50)
    with pytest.raises(ValueError, match=r"seed [01]: loss or gradients are not finite at step"):
        train_seeds(data, params, CPU, lambda seed, row: None)
    assert not workers_of(psutil.Process())


def test_processes_end_when_the_stage_is_killed(data):
    script = (
        "import torch\nfrom pathlib import Path\nfrom classifier.training.seeds import train_seeds\n"
        "from tests.samples import train_params\n"
        f"train_seeds(Path({str(data)!r}), train_params(seeds=2, epochs=10000), torch.device('cpu'), "
        "lambda seed, row: print(seed, flush=True))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    stage = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    stage.stdout.readline()
    workers = workers_of(psutil.Process(stage.pid))
    assert len(workers) == 2
    stage.kill()
    stage.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_a_process_ends_with_its_standard_input_without_waiting_for_a_row_to_break_the_pipe(data, tmp_path):
    params = train_params(epochs=100000).model_dump()
    job = {"data": str(data), "folder": str(tmp_path), "seeds": [0], "params": params, "work": None}
    command = [sys.executable, "-m", "classifier.training.seeds", json.dumps(job)]
    with (tmp_path / "rows").open("wb") as rows:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=rows, cwd=ROOT)
        worker.communicate(timeout=60)
    assert worker.returncode == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_a_seed_that_diverges_is_named(data, processes):
    params = train_params(seeds=2, processes=processes, learning_rate=100.0)
    with pytest.raises(UserError, match=r"^seed \d: loss or gradients are not finite at step"):
        train_seeds(data, params, CPU, lambda seed, row: None)


def test_a_process_that_is_killed_in_the_middle_ends_the_stage(data):
    def kill(seed, row):
        for worker in workers_of(psutil.Process()):
            worker.kill()

    with pytest.raises(ValueError, match="a training process exited with -9"):
        train_seeds(data, train_params(seeds=2, epochs=1000), CPU, kill)


def seeds_with(*ends):
    model = Classifier(LeNet5(1, 10), [0.0], [1.0])
    return {
        seed: Trained(model, [HistoryRow(1, 1, 1, 0.1, None, loss, loss if accuracy else None, accuracy)])
        for seed, (accuracy, loss) in enumerate(ends)
    }


@pytest.mark.parametrize(
    ("ends", "chosen"),
    [
        ([(0.9, 1.0)], 0),
        ([(0.9, 1.0), (0.7, 1.0), (0.8, 1.0)], 2),
        ([(0.9, 1.0), (0.8, 1.0)], 1),  # the lower of two
        ([(0.8, 3.0), (0.8, 1.0), (0.8, 2.0)], 2),  # equal accuracy: by loss
        ([(None, 3.0), (None, 1.0), (None, 2.0)], 2),  # no validation split: by training loss
    ],
)
def test_the_median_on_validation_is_chosen(ends, chosen):
    assert median_seed(seeds_with(*ends)) == chosen


def test_spread_against_a_textbook_example():
    """n = 5, mean 10, s = 1.5811, t(0.975, 4) = 2.7764: 10 -+ 1.9632."""
    found = summarize([8, 9, 10, 11, 12])
    assert found == pytest.approx({"mean": 10, "std": 1.58114, "low": 8.03676, "high": 11.96324}, rel=1e-5)
