"""The committed pipeline is run again elsewhere, and each output is compared with the committed dvc.lock."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest

from classifier.commands.verify import text
from classifier.repository.dvc import dvc_command
from classifier.runs.verification import Output, Verification, other_libraries
from tests.projects import Project
from tests.samples import ROOT

PIPELINE = """
stages:
  first: {{cmd: python first.py, deps: [first.py], params: [normalize], outs: [made/first]}}
  second: {{cmd: cp {machine} made/second, deps: [made/first], outs: [made/second]}}
"""


class Tiny(Project):
    """Two stages, of which the second does what a file outside of the project says, as a machine's processor would."""

    def __init__(self, folder):
        self.folder, self.machine = folder / "project", folder / "machine"
        self.folder.mkdir()
        self.machine.write_text("one kind\n")
        (self.folder / "dvc.yaml").write_text(PIPELINE.format(machine=self.machine))
        (self.folder / "first.py").write_text("open('made/first', 'w').write('1')\n")
        (self.folder / "made").mkdir()
        (self.folder / "made/.gitignore").write_text("first\nsecond\n")
        (self.folder / "requirements.lock").write_text(f"dvc=={version('dvc')} \\\n    --hash=sha256:0\n")
        shutil.copy(ROOT / "params.yaml", self.folder)
        self.git("init", "-q", "-b", "main")
        self.run(*dvc_command("init", "-q"))
        self.run(*dvc_command("repro", "-q"))
        self.commit("results")

    def verify(self, *options):
        """Standard output of `classifier verify`."""
        command = [sys.executable, "-m", "classifier", "verify", *options]
        variables = self.variables | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)
        self.returncode = done.returncode
        return done.stdout or done.stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.slow
def test_a_machine_that_makes_the_same_bytes_and_one_that_does_not(tiny):
    before = tiny.git("status", "--short", "--ignored")
    said = tiny.verify()
    assert tiny.returncode == 0, said
    first, machine = said.splitlines()
    assert first.endswith(": the same bytes as published: made/first, made/second")
    assert machine.startswith("this machine: machine x86_64, cpu ")
    assert "arithmetic portable, instructions AVX2, compatible MKL, parts 2" in machine

    tiny.machine.write_text("another kind\n")
    (tiny.folder / "first.py").write_text("broken, but not committed")
    found = json.loads(tiny.verify("--json"))
    assert tiny.returncode == 1
    assert not found["identical"]
    assert [each["path"] for each in found["outputs"] if each["published"] != each["made"]] == ["made/second"]
    assert found["outdated"] == []
    assert found["libraries"] == {}
    tiny.git("checkout", "first.py")
    assert tiny.git("status", "--short", "--ignored") == before

    (tiny.folder / "first.py").write_text("raise SystemExit('no such processor')\n")
    tiny.commit("a stage that fails here")
    said = tiny.verify()
    assert tiny.returncode == 1
    assert "the pipeline of commit" in said
    assert "fails here: no such processor" in said


def test_the_first_stage_that_differs_and_what_may_explain_it_are_said():
    outputs = [Output("normalize", "data/normalized", "a", "a"), Output("train", "models/classifier", "b", None)]
    machine, libraries = {"cpu": "AMD EPYC", "arithmetic": "native"}, {"torch": ("2.13.0", "2.14.1")}
    found = Verification("c0ffee" * 6, outputs, machine, libraries, ["params.yaml (train)"])
    assert text(found).splitlines() == [
        "commit c0ffeec0: stage train is the first that differs:",
        "  models/classifier: None, published b",
        "this machine: cpu AMD EPYC, arithmetic native",
        "versions other than in requirements.lock: torch 2.13.0 (2.14.1): make setup",
        "dvc.lock was made before params.yaml (train) changed: dvc repro, then commit dvc.lock",
    ]


def test_versions_are_compared_with_those_that_are_locked_for_this_python(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        f"pytest=={pytest.__version__} \\\n    --hash=sha256:0\n    # via this\n"
        "numpy==0.1 ; python_full_version < '3.0'\nno-such-package==1\ndvc==0.1\n"
    )
    assert other_libraries(tmp_path) == {"no-such-package": ("missing", "1"), "dvc": (version("dvc"), "0.1")}


@pytest.mark.slow
def test_the_published_bytes_are_made_here(tmp_path):
    """The real pipeline, as HEAD has it; what is not committed yet is not verified."""
    if not (ROOT / "dvc.lock").is_file() or not (ROOT / ".git").exists():
        pytest.skip("not a repository with a dvc.lock")
    command = [sys.executable, "-m", "classifier", "verify", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    if found["outdated"]:
        pytest.skip(f"dvc.lock was made before these changed: {found['outdated']}")
    assert found["identical"], found
    assert done.returncode == 0
