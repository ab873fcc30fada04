"""Runs of the whole pipeline made again, in a project below its repository."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from classifier.project.files import sha256_of
from tests.projects import Project

pytestmark = pytest.mark.slow


class Lab(Project):
    """In a subfolder of its repository, a submodule of another, with a folder for temporary files beside."""

    def __init__(self, folder):
        above, origin, self.temporary = (folder / name for name in ("above", "origin", "temporary"))
        self.temporary.mkdir()
        (origin / "teams/project").mkdir(parents=True)
        super().__init__(origin / "teams/project")
        shutil.rmtree(self.folder / ".git")
        self.git("init", "-q", "-b", "main", str(origin))
        self.commit("start")
        self.git("init", "-q", "-b", "main", str(above))
        submodule = ["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(origin), "lab"]
        self.git("-C", str(above), *submodule)
        self.git("-C", str(above), "commit", "-q", "-m", "a submodule")
        self.folder = above / "lab/teams/project"

    def reproduce(self, run_id):
        command = [sys.executable, "-m", "classifier", "reproduce", run_id, "--json"]
        output = self.run(*command, check=False, env={"TMPDIR": str(self.temporary)})
        assert self.returncode in (0, 1), output
        return json.loads(output[output.index("\n{") :])

    def left_alone(self):
        """What `reproduce` must not change: workspace, git, caches and store."""
        kept = [path for path in self.folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        ignored = (".lock", "-wal", "-shm", "-journal")
        files = {str(path): sha256_of(path) for path in kept if ".git/" not in str(path)}
        return (
            {name: value for name, value in files.items() if not name.endswith(ignored) and "/.dvc/tmp/" not in name},
            self.git("worktree", "list"),
            self.git("status", "--porcelain"),
            self.git("stash", "list"),
            self.git("for-each-ref"),
        )

    def nothing_is_left(self):
        return not [path for path in self.temporary.iterdir() if path.name.startswith("project-")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.edit_params("epochs: 20", "epochs: 1")
    lab.commit("quick")
    return lab


def test_an_experiment_with_several_seeds_and_uncommitted_code_is_repeated_after_the_code_was_changed(lab):
    source = lab.folder / "classifier/networks/model.py"
    committed = source.read_text()
    source.write_text(f"{committed}# uncommitted\n")
    lab.run("dvc", "exp", "run", "--name", "two", "-S", "train.seeds=2", "-S", "train.learning_rate=0.03")
    ((run_id,),) = lab.query("SELECT run_uuid FROM runs WHERE name LIKE '% two'")
    lab.git("checkout", "--quiet", ".")
    source.write_text("raise ImportError('of today')\n")
    lab.edit_params("learning_rate: 0.05", "learning_rate: 0.02")
    lab.commit("today's code is another")
    for folder in (".dvc/cache", "data", "models", "reports"):  # the data are to be downloaded again
        lab.run("rm", "-rf", folder)
    before = lab.left_alone()
    verdict = lab.reproduce(run_id[:8])
    assert verdict["differences"] == []
    assert (verdict["identical"], lab.returncode, verdict["run"]) == (True, 0, run_id)
    assert verdict["environment"] == []
    assert verdict["warnings"] == []
    compared = verdict["compared"]
    assert (compared["data"], compared["weights"], compared["reports"]) == (2, 2, 25)
    assert lab.left_alone() == before
    assert lab.nothing_is_left()
    source.write_text(committed)


def test_a_failure_is_repeated_and_ctrl_c_leaves_nothing(lab):
    lab.edit_params("learning_rate: 0.0", "learning_rate: 100.0 #")
    lab.repro(check=False)
    ((run_id,),) = lab.query("SELECT run_uuid FROM runs WHERE status = 'FAILED'")
    before = lab.left_alone()
    verdict = lab.reproduce(run_id)
    assert (verdict["identical"], lab.returncode, verdict["differences"]) == (True, 0, [])
    assert verdict["compared"]["error"] == 1
    assert lab.left_alone() == before
    assert lab.nothing_is_left()

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "classifier", "reproduce", run_id],
        cwd=lab.folder,
        env=environment | {"TMPDIR": str(lab.temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    with process.stderr as lines:
        while not (places := list(lab.temporary.glob("project-*/project/teams/project/dvc.yaml"))):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = lines.read()
    assert process.wait(60) == 130
    assert "Traceback" not in said
    assert lab.nothing_is_left()
    assert lab.left_alone() == before
    assert not [each for each in psutil.process_iter(["cwd"]) if str(places[0].parent) in (each.info["cwd"] or "")]
