"""Processes that torchrun starts: the bytes of one process, and a clean end of all of them, whatever ends one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from ruamel.yaml import YAML

from classifier.arithmetic import CAPS
from classifier.device import environment
from classifier.errors import UserError
from classifier.project.files import sha256_of
from classifier.recording.journal import JOURNALS, Journal
from classifier.training.checkpoint import deciding
from classifier.training.parts import Computation, computation_of
from classifier.training.ranks import COMPARED
from tests.commands.test_ui import free_port
from tests.processes import words_of
from tests.samples import ROOT, file_params, train_params, write_digits

COMMAND = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]["train"]["cmd"]
STAGE = COMMAND.split()[1:]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
# A program of torchrun's processes: what `Ranks` does with small tensors.
PROGRAM = """
import sys
import torch
from classifier.errors import UserError
from classifier.training.ranks import Ranks
device = torch.device(sys.argv[1])
crew = Ranks.joined(device)
rows, ragged = crew.share(5, 3), [torch.zeros(size, device=device) for size in (4, 1, 2)]
for turn in range(50):
    for number in range(crew.rank, 5, crew.size):
        rows[number] = 100 * turn + number
    for number in range(crew.rank, 3, crew.size):
        ragged[number].fill_(turn + number)
    crew.meet(rows.unbind())
    crew.meet(ragged)
    assert rows.tolist() == [[100 * turn + number] * 3 for number in range(5)]
    assert [each.tolist() for each in ragged] == [[turn] * 4, [turn + 1], [turn + 2] * 2]
crew.meet()
layout = torch.full((2, 3, 4, 4), float(crew.rank), device=device)
layout = layout.to(memory_format=torch.channels_last).requires_grad_()
assert crew.hand_out([7 - crew.rank, crew.rank], [layout]) == [7, 0]
assert not layout.any() and layout.is_contiguous(memory_format=torch.channels_last)
crew.agree({"data": "a", "cpu": str(crew.rank)})
try:
    crew.agree({"data": "a", "torch": "2.1"} if crew.rank == 2 else {"data": "a", "torch": "2.0", "cpu": "another"})
except UserError as error:
    print(error)
ran = []
with crew.working(lambda: ran.append(crew.rank)):
    assert ran == [crew.rank] * (crew.rank > 0)
sys.stdout.write("all is well\\n")
"""


def free_variables(**more):
    """Without the caps that the tests have chosen, and torchrun's own."""
    gone = (*CAPS, "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def launch(arguments, folder=".", processes=2, nodes=(), **more):
    command = [*TORCHRUN, *(nodes or ["--standalone"]), "--nproc-per-node", str(processes), *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=free_variables(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def outputs(folder):
    files = [path for out in ("models", "reports") for path in sorted((folder / out).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def runs(folder):
    """Journals and checkpoints that are left, whose rank 0 alone has."""
    return sorted(path.name for path in (folder / ".pipeline/checkpoints").glob("*"))


def write_project(folder, train=600, **values):
    """Some seconds of training in three parts, with a checkpoint after every tenth step, and other values of train."""
    write_digits(folder / "data/normalized", train=train)
    changes = {f"train.{name}": value for name, value in ({"parts": 3, "checkpoint_every": 10} | values).items()}
    (folder / "params.yaml").write_text(file_params().override(changes).model_dump_json())  # JSON is YAML
    return folder


def ranks_of(torchrun):
    """The stage's processes by rank, once they train."""
    found = [each for each in psutil.Process(torchrun.pid).children() if "stages.train" in words_of(each)]
    return {int(each.environ()["RANK"]): each for each in found}


def wait_for_checkpoint(torchrun, folder):
    end = time.monotonic() + 100
    while not list(folder.glob(".pipeline/checkpoints/*/seed-0/*.safetensors")):
        assert torchrun.poll() is None, torchrun.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_page_has_the_command_of_dvc_yaml():
    launched = COMMAND.replace("python", "torchrun --nproc-per-node 2")
    page = re.sub(r" \\\n\s+", " ", (ROOT / "docs/equal-bits.md").read_text())  # a command on several lines
    assert launched in page
    assert COMMAND.removeprefix("python ") in page.replace(launched, "")


def test_all_that_decides_the_bits_is_compared_but_the_machines(tmp_path):
    write_digits(tmp_path)
    cpu = torch.device("cpu")
    decisive = Computation("portable", "AVX2", parts=2, processes=1, threads=1).decisive(environment(cpu))
    deciders = deciding(train_params(), tmp_path, decisive, ROOT / "stages/train.py")
    assert deciders.keys() - {"threads"} == set(COMPARED)


def test_processes_are_as_many_as_parts_at_most(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = computation_of(train_params(parts=4), torch.device("cpu"))
    assert (found.parts, found.processes, found.threads) == (4, 3, 1)
    with pytest.raises(
        UserError, match=r"3 processes for 2 parts of a batch: start at most 2, or set train.parts to 3"
    ):
        computation_of(train_params(parts="auto"), torch.device("cpu"))
    with pytest.raises(UserError, match=r"3 processes for 1 part of a batch"):
        computation_of(train_params(parts="auto"), torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_what_processes_exchange_is_everywhere_afterwards(tmp_path, processes, device):
    """Processes that share one GPU exchange through gloo as well."""
    (tmp_path / "program.py").write_text(PROGRAM)
    with launch(["program.py", device.type], tmp_path, processes) as torchrun:
        said = torchrun.communicate(timeout=100)[0]
    assert torchrun.returncode == 0, said
    assert said.count("all is well") == processes
    other = r"rank 2 on \S+ and rank 0 differ in torch \(here: torch 2\.1\): give every machine the same commit"
    assert bool(re.search(other, said)) == (processes == 3)


@pytest.mark.slow
def test_torchrun_gives_the_bytes_of_one_process(tmp_path):
    alone = write_project(tmp_path / "alone")
    subprocess.run([sys.executable, *STAGE], cwd=alone, env=free_variables(), check=True, capture_output=True)
    for processes in (2, 3):
        folder = write_project(tmp_path / str(processes))
        with launch(STAGE, folder, processes) as torchrun:
            said = torchrun.communicate(timeout=200)[0]
        assert torchrun.returncode == 0, said
        assert f"portable arithmetic, 3 parts in {processes} processes of 1 thread" in said
        assert said.count("[1,    10] loss: ") == 1, said
        assert outputs(folder) == outputs(alone)


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "how"), [(0, signal.SIGKILL), (1, signal.SIGTERM)])
def test_a_process_that_is_killed_ends_all_and_training_resumes(tmp_path, victim, how):
    alone, folder = write_project(tmp_path / "alone"), write_project(tmp_path / "torchrun")
    subprocess.run([sys.executable, *STAGE], cwd=alone, env=free_variables(), check=True, capture_output=True)
    with launch(STAGE, folder) as torchrun:
        wait_for_checkpoint(torchrun, folder)
        training = ranks_of(torchrun)
        training[victim].send_signal(how)
        said = torchrun.communicate(timeout=100)[0]
    assert torchrun.returncode != 0
    assert not [each for each in training.values() if each.is_running()]
    assert not outputs(folder)
    assert runs(folder)
    with launch(STAGE, folder) as torchrun:
        said = torchrun.communicate(timeout=200)[0]
    assert torchrun.returncode == 0, said
    assert outputs(folder) == outputs(alone)
    assert not runs(folder)


NETWORKS = """
import sys
from classifier.arithmetic import use
use("portable")
from tests.training.test_buffers import NETWORKS, trained
for network in NETWORKS:
    for keep in {}, {"ema": 0.9, "weights": "validation_loss", "patience": 1, "learning_rate": 0.2}:
        weights, _ = trained(network, epochs=8, processes=1, **keep)
        sys.stdout.write(f"weights {weights}\\n")  # in one piece, as others write as well
"""


@pytest.mark.slow
def test_networks_of_every_kind_have_the_bytes_of_one_process(tmp_path):
    """Batch normalization, depthwise convolutions, attention and dropout; an average, the best epoch, an early end."""
    program = tmp_path / "networks.py"
    program.write_text(NETWORKS)
    done = subprocess.run([sys.executable, program], env=free_variables(), check=True, capture_output=True, text=True)
    expected = re.findall(r"weights (\w+)", done.stdout)
    assert len(set(expected)) == 6
    for processes in (2, 3):
        with launch([str(program)], tmp_path, processes) as torchrun:
            said = torchrun.communicate(timeout=200)[0]
        assert torchrun.returncode == 0, said
        assert sorted(re.findall(r"weights (\w+)", said)) == sorted(expected * processes)


IMPATIENT = """
import classifier.training.ranks as ranks
from classifier.project.cli import run_stage
from stages.train import main
ranks.PATIENCE_S = 4
run_stage(main, shared=True)
"""


@pytest.mark.slow
def test_a_process_that_hangs_ends_all(tmp_path):
    folder = write_project(tmp_path / "torchrun")
    (folder / "train.py").write_text(IMPATIENT)
    with launch(["train.py", *STAGE[2:]], folder) as torchrun:
        wait_for_checkpoint(torchrun, folder)
        children = {int(each.environ()["RANK"]): each for each in psutil.Process(torchrun.pid).children()}
        children[1].suspend()
        said = torchrun.communicate(timeout=100)[0]
    assert torchrun.returncode != 0
    assert "train: rank 0 of 2 lost the others, which ended or did not answer for 4 s" in said
    assert "run again: training resumes from its last checkpoint" in said
    assert not [each for each in children.values() if each.is_running()]
    assert runs(folder)


def launch_hosts(folders, port, processes=1):
    """A torchrun on each of several machines, here on loopback, each with a clone of its own."""
    where = ["--nnodes", str(len(folders)), "--master-addr", "127.0.0.1", "--master-port", str(port)]
    hosts = [["--node-rank", str(number), *where] for number in range(len(folders))]
    return [launch(STAGE, folder, processes, host) for folder, host in zip(folders, hosts, strict=True)]


@pytest.mark.slow
def test_two_machines_with_clones_of_their_own_train_one_model(tmp_path):
    alone = write_project(tmp_path / "alone")
    subprocess.run([sys.executable, *STAGE], cwd=alone, env=free_variables(), check=True, capture_output=True)
    folders = [write_project(tmp_path / name) for name in ("first", "second")]
    hosts = launch_hosts(folders, free_port())
    said = [host.communicate(timeout=200)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert outputs(folders[0]) == outputs(alone)
    assert not outputs(folders[1])
    assert not (folders[1] / ".pipeline").exists()


def change_code(folder, *names):
    """Give the machine in `folder` a clone of its own, in which these modules differ."""
    for name in ("classifier", "networks", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in names:
        with (folder / name).open("a") as file:
            file.write("# changed\n")


@pytest.mark.slow
@pytest.mark.parametrize("other", [("data",), ("params", "data", "code", "network")], ids=" ".join)
def test_machines_that_differ_say_in_what_before_anything_is_recorded(tmp_path, other):
    first = write_project(tmp_path / "first", network="example:small")
    values = {"learning_rate": 0.1} if "params" in other else {}
    second = write_project(tmp_path / "second", train=500, network="example:small", **values)
    if "code" in other:
        change_code(second, "classifier/training/loss.py", "networks/example.py")
    hosts = launch_hosts([first, second], free_port())
    said = [host.communicate(timeout=200)[0] for host in hosts]
    assert 0 not in [host.returncode for host in hosts]
    for rank, there in ((0, 1), (1, 0)):
        expected = rf"train: rank {rank} on \S+ and rank {there} differ in {', '.join(other)} \(here: {other[0]} \w+"
        assert re.search(rf"^{expected}.*: give every machine the same commit, params", said[rank], re.MULTILINE)
    assert not runs(first)
    assert not (second / ".pipeline").exists()


@pytest.mark.slow
def test_several_seeds_have_the_bytes_of_one_process_and_rank_0_alone_writes_a_journal(tmp_path):
    plan = {"seeds": 2, "epochs": 3, "processes": 2}
    alone, folder = write_project(tmp_path / "alone", **plan), write_project(tmp_path / "torchrun", **plan)
    subprocess.run([sys.executable, *STAGE], cwd=alone, env=free_variables(), check=True, capture_output=True)
    (folder / "mlflow.db").mkdir()  # no store, so that journals stay
    with launch(STAGE, folder) as torchrun:
        said = torchrun.communicate(timeout=200)[0]
    assert torchrun.returncode == 0, said
    assert outputs(folder) == outputs(alone)
    assert "reports/train/replicas/seed-1.csv" in outputs(folder)
    (journal,) = [Journal(path) for path in (folder / JOURNALS).glob("*-*")]
    assert journal.begin()["params"]["train.seeds"] == "2"


@pytest.mark.slow
def test_a_seed_that_diverges_ends_all_with_one_line_that_says_so(tmp_path):
    folder = write_project(tmp_path / "torchrun", seeds=2, learning_rate=100.0)
    with launch(STAGE, folder) as torchrun:
        said = torchrun.communicate(timeout=200)[0]  # until all have ended, which share its output
    assert torchrun.returncode == 1
    assert len(re.findall(r"^train: seed 0: loss or gradients are not finite at step \d+ ", said, re.MULTILINE)) == 1, (
        said
    )
    assert not outputs(folder)
    assert not list(folder.rglob(".*.tmp"))
    assert runs(folder)
