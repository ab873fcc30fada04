"""Errors that a person can cure are one line, signals unwind, faults of the program keep their traceback."""

import os
import re
import signal
import subprocess
import sys

import pytest

from classifier.project.cli import paths
from tests.samples import ROOT


def run(body):
    start = "import sys, time\nfrom classifier.errors import UserError\nfrom classifier.project.cli import run\n"
    script = f"{start}def main(arguments):\n    {body}\nrun(main, 'train')\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("error", ["UserError('x: 3, allowed is 1')", "FileNotFoundError('x: 3, allowed is 1')"])
def test_one_clear_line(error):
    process = run(f"raise {error}")
    out, err = process.communicate()
    assert (process.returncode, out, err) == (1, "", "train: x: 3, allowed is 1\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [("28, 'No space left', '/tmp/a'", "/tmp/a cannot be written: the disk is full"), ("122, 'Quota'", "disk quota")],
    ids=["file", "quota"],
)
def test_a_full_disk_is_said_with_what_is_free_whoever_wrote(error, said):
    err = run(f"raise OSError({error})").communicate()[1]
    assert re.fullmatch(rf"train: (?=/).*{said}.* \([\d,]+ bytes free\)\n", err)


@pytest.mark.parametrize(
    "fault", ["assert False, 'broken'", "raise ValueError('of numpy')", "raise RuntimeError('shape')"]
)
def test_a_fault_of_the_program_keeps_its_traceback(fault):
    process = run(fault)
    assert "Traceback" in process.communicate()[1]
    assert process.returncode == 1


CUDA = (  # PyTorch 2.14's words
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 5.25 GiB is "
    "free. Including non-PyTorch memory, this process has 73.92 GiB memory in use. Of the allocated memory 70.00 GiB "
    "is allocated by PyTorch, and 2.00 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory "
    "is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import torch; torch.empty(2**50)", "you tried to allocate 4503599627370496 bytes; "),
        ("import numpy; numpy.empty((2**50, 3))", "Unable to allocate 24.0 PiB for an array with shape "),
        ("raise MemoryError", "no memory is left; "),
        (
            f"import torch; raise torch.OutOfMemoryError({CUDA!r})",
            "Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 5.25 GiB is free: ",
        ),
        pytest.param(
            "import torch; torch.empty(2**50, dtype=torch.uint8, device='cuda')",
            "Tried to allocate 1048576.00 GiB. GPU 0 has a total capacity of ",
            marks=pytest.mark.gpu,
        ),
    ],
)
def test_a_lack_of_memory_is_one_line_with_the_sizes_and_the_key_to_lower(body, said, request):
    if "device='cuda'" in body:
        request.getfixturevalue("cuda")
    process = run(body)
    out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (1, "", 1), err
    assert err.startswith("train: out of memory: ")
    assert said in err
    assert ("GiB are free on this machine" in err) != ("GPU" in err)
    assert err.endswith(": lower train.batch_size, or close other programs\n")


def test_what_a_program_notes_about_a_lack_of_memory_is_its_remedy():
    process = run("error = MemoryError(); error.add_note('set train.batch_size to 8 or less'); raise error")
    assert process.communicate()[1].endswith(": set train.batch_size to 8 or less, or close other programs\n")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_unwind_quietly(number, status):
    process = run("\n    try:\n        print('on', flush=True); time.sleep(60)\n    finally:\n        print('unwound')")
    assert process.stdout.readline() == "on\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (status, "unwound\n", "")


def test_paths_say_what_is_expected():
    assert [path.as_posix() for path in paths(["a", "b/c"], "data", "model")] == ["a", "b/c"]
    with pytest.raises(ValueError, match="expected DATA MODEL, got 1: a"):
        paths(["a"], "data", "model")


def test_help_of_a_stage_is_its_docstring():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.train", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert (
        "python -m stages.train params.yaml data/normalized data/pretrained models/classifier reports/train"
        in done.stdout
    )


@pytest.mark.parametrize(
    ("stage", "rank", "world", "status"),
    [("evaluate", 0, 2, 1), ("evaluate", 1, 2, 0), ("evaluate", 1, 1, 1), ("train", 1, 2, 1)],
)
def test_of_the_processes_of_torchrun_the_first_is_the_stage(tmp_path, stage, rank, world, status):
    """The others do nothing, or, of a shared stage, the work without its lock: here both fail without arguments."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": str(rank), "WORLD_SIZE": str(world)}
    command = [sys.executable, "-m", f"stages.{stage}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == status
    assert ("expected PARAMS DATA" in done.stderr) == bool(status)
    assert (tmp_path / ".pipeline").exists() == (rank == 0 or world == 1)
