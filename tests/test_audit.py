"""`lenet audit`: what is known, what could not be asked, and the licences; pip-audit is run for real, offline."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest

from commands.audit import licence_of, text, vulnerabilities
from tests.loopback import closed_address
from tests.samples import ROOT

KNOWN = {"name": "a", "version": "1.0", "id": "PYSEC-0", "fix_versions": ["1.1"]}


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.lock"
    path.write_text(f"six==1.16.0 --hash=sha256:{'0' * 64}\n")
    return path


def test_an_index_that_cannot_be_reached_is_said_and_is_no_success(lock, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, closed_address())
    found, problem = vulnerabilities((lock,))
    assert found == []
    assert "Connection refused" in problem or "Max retries" in problem or "proxy" in problem.lower()
    assert "\n" not in problem


def test_a_missing_lock_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"requirements\.lock does not exist: run in the project's root"):
        vulnerabilities((tmp_path / "requirements.lock",))


def test_a_vulnerability_is_named_with_the_version_that_mends_it():
    shown = text([KNOWN, KNOWN | {"fix_versions": []}], "", {"a": "MIT"})
    assert shown.splitlines()[:3] == [
        "a 1.0: PYSEC-0, mended in 1.1",
        "a 1.0: PYSEC-0, mended in no version yet",
        "known vulnerabilities: 2 of requirements.lock, requirements-uv.lock",
    ]
    assert "could not be looked up: no network" in text([], "no network", {"a": "MIT"})


def test_licences_come_from_the_metadata():
    assert licence_of(distribution("pydantic")) == "MIT"
    assert licence_of(distribution("pytest")) == "MIT"
    assert all(licence_of(package) and "\n" not in licence_of(package) for package in distributions())


def test_json_alone_on_standard_output():
    command = [sys.executable, "-m", "commands.audit", "--json", "--licences"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert answer["licences"]["torch"]
    assert answer["vulnerabilities"] == []
