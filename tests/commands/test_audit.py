"""`classifier audit`: what is known, what could not be asked, and the licences; pip-audit is run for real, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest

from classifier.commands.audit import LOCKS, licence_of, text, vulnerabilities
from tests.loopback import closed_address
from tests.samples import ROOT

KNOWN = {"name": "a", "version": "1.0", "id": "PYSEC-0", "fix_versions": ["1.1"]}


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    (tmp_path / ".dvc").mkdir()  # a project, for the command
    path = tmp_path / "requirements.lock"
    path.write_text(f"six==1.16.0 --hash=sha256:{'0' * 64}\n")
    return path


def test_an_unreachable_index_is_reported_and_is_not_a_success(lock, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, closed_address())
    found, problem = vulnerabilities((lock,))
    assert found == []
    assert "Connection refused" in problem or "Max retries" in problem or "proxy" in problem.lower()
    assert "\n" not in problem


def test_a_missing_lock_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"requirements\.lock does not exist: make lock"):
        vulnerabilities((tmp_path / "requirements.lock",))


def test_a_vulnerability_is_named_with_the_version_that_fixes_it():
    shown = text([KNOWN, KNOWN | {"fix_versions": []}], "", {"a": "MIT"})
    assert shown.splitlines()[:3] == [
        "a 1.0: PYSEC-0, fixed in 1.1",
        "a 1.0: PYSEC-0, fixed in no version yet",
        f"known vulnerabilities: 2 of {', '.join(map(str, LOCKS))}",
    ]
    assert "could not be checked: no network" in text([], "no network", {"a": "MIT"})


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        ({"vulns": []}, 0, f"known vulnerabilities: 0 of {', '.join(map(str, LOCKS))}"),
        ({"vulns": [{"id": "PYSEC-0", "fix_versions": ["1.1"]}]}, 1, "six 1.16.0: PYSEC-0, fixed in 1.1"),
        ({"skip_reason": "not found"}, 2, "could not be checked: the index does not know 1 of 1 packages (six)"),
        (None, 2, "known vulnerabilities: could not be checked: no route to the index"),
    ],
)
def test_the_exit_status_tells_the_result(lock, answer, status, says):
    """A module named pip_audit prints what pip-audit would, because the index's answers cannot be controlled."""
    for path in LOCKS:
        (lock.parent / path).write_bytes(lock.read_bytes())
    printed = {"dependencies": [{"name": "six", "version": "1.16.0", **(answer or {})}]}
    asked = [word for path in LOCKS for word in ("--requirement", str(path))]
    (lock.parent / "pip_audit.py").write_text(
        f"import json, sys\nassert sys.argv[1:{len(asked) + 1}] == {asked}\n"
        + (f"print(json.dumps({printed}))\n" if answer else "sys.exit('no route to the index')\n")
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "classifier", "audit"]
    ended = subprocess.run(command, cwd=lock.parent, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (status, "")
    assert says in ended.stdout


def test_every_lock_is_checked():
    assert {path.name for path in LOCKS} == {path.name for path in ROOT.glob("requirements*.lock")}


def test_licences_come_from_the_metadata():
    assert licence_of(distribution("pydantic")) == "MIT"
    assert licence_of(distribution("pytest")) == "MIT"
    assert all(licence_of(package) and "\n" not in licence_of(package) for package in distributions())


def test_json_alone_on_standard_output():
    command = [sys.executable, "-m", "classifier", "audit", "--json", "--licences"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert answer["licences"]["torch"]
    assert answer["vulnerabilities"] == []
