"""DVC's hashes of what is on disk, and of what a stage read."""

import subprocess
import sys
from pathlib import Path

import pytest

from classifier.repository.code import code_paths
from classifier.repository.lockfile import Lock, hash_of, hash_told_by, read_lock
from tests.recorded import Workspace, get_run


@pytest.fixture
def locked(workspace):
    """A stage that depends on a file and a folder, as DVC has locked it."""
    for name in ("code/b.py", "code/a b/ö.py", "code/a.py", "code/__pycache__/a.pyc", "one.py"):
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text(name)
    (workspace / "dvc.yaml").write_text(
        "stages: {s: {cmd: mkdir out && echo 1 > out/list && echo 2 > out/large, deps: [code, one.py], outs: [out]}}"
    )
    (workspace / ".dvcignore").write_text("__pycache__/\n")
    for command in (["init", "--quiet", "--no-scm"], ["repro", "--quiet"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], check=True)
    return read_lock()


def test_hashes_of_files_and_folders_are_those_of_dvc(locked):
    assert locked.code.keys() == {"code", "one.py"}
    assert {path: hash_of(Path(path)) for path in locked.code} == locked.code
    assert hash_of(Path("out")) == locked.outputs["out"]
    assert hash_of(Path("missing")) is None
    (Path("code/a b") / "ö.py").write_text("changed")
    assert hash_of(Path("code")) != locked.code["code"]


def test_the_hash_of_a_folder_is_told_by_the_file_with_the_digests_of_the_others(locked):
    out, known = Path("out"), locked.outputs["out"]
    (out / "large").unlink()
    assert hash_told_by(out, "list") is None, "a file is missing"
    (out / "large").write_text("not read")
    assert hash_told_by(out, "list") == known
    (out / "list").write_text("another")
    assert hash_told_by(out, "list") is None
    (out / "list").write_text("1\n")
    (out / "more").touch()
    assert hash_told_by(out, "list") is None
    assert hash_told_by(Path("code"), "b.py") is None, "no output"


def test_a_run_names_the_data_that_were_read_rather_than_those_of_dvc_lock(workspace):
    """As when a person runs a stage by hand on changed data."""
    outputs = Workspace()
    other = f"{0:032}.dir"
    Path("dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  normalize:\n    cmd: x\n    outs:\n    - path: data/normalized\n"
        f"      hash: md5\n      md5: {other}\n"
    )
    run_id = outputs.train()
    assert outputs.evaluate() == run_id
    run = get_run(run_id)
    assert run.data.tags["dvc.data"] == hash_of(outputs.data) != other
    assert run.inputs.dataset_inputs[0].dataset.digest == run.data.tags["dvc.data"]
    assert run.data.tags["dvc.model"] == hash_of(outputs.model)


def test_the_users_images_are_no_code():
    stage = {
        "deps": [{"path": "photos/", "md5": "1.dir"}, {"path": "stages/download.py", "md5": "2"}],
        "params": {"params.yaml": {"download": {"folder": "photos"}}},
    }
    assert Lock({"download": stage}).code == {"stages/download.py": "2"}
    assert code_paths(b"stages: {download: {cmd: x, deps: ['${download.folder}/', a.py]}}") == ["a.py", "dvc.yaml"]
