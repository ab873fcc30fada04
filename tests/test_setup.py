"""What a fresh machine installs: pinned, hashed, and naming no index."""

import os
import re
import subprocess

import pytest

from tests.samples import ROOT

LOCKS = sorted(ROOT.glob("requirements*.lock"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_with_hashes_and_no_address(lock):
    text = lock.read_text()
    requirements = re.findall(r"^[a-z0-9][^\n]*?(?:\\\n[^\n]*)*$", text, re.MULTILINE)
    assert requirements
    for requirement in requirements:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==[^ ]+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement
    assert "://" not in text
    assert not re.search(r"^ *# .* /", text, re.MULTILINE), "a path of the machine that made it"


def test_the_lock_holds_the_pair_of_torch_and_torchvision_that_works_on_a_cpu_too():
    text = (ROOT / "requirements.lock").read_text()
    assert re.search(r"^torch==2\.14\.1 ", text, re.MULTILINE)
    assert re.search(r"^torchvision==0\.29\.1 ", text, re.MULTILINE)


def test_set_up_compiles_bytecode():
    makefile = (ROOT / "Makefile").read_text()
    assert all("--compile-bytecode" in line for line in makefile.splitlines() if "uv pip sync" in line)


def test_whatever_is_installed_has_the_hash_of_its_lock():
    """Each install names a lock and asks for hashes, but that of this project, which asks no index at all."""
    installs = re.findall(r"^\t.*\bpip (?:install|sync) .*$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    own = [line for line in installs if line.endswith(" --editable .")]
    assert (len(installs), len(own)) == (4, 1)
    assert all(word in own[0].split() for word in ("--no-deps", "--no-index", "--no-build-isolation"))
    for line in installs:
        assert line in own or re.search(r" --require-hashes .*\brequirements[a-z-]*\.lock", line), line


def test_the_pipeline_is_repaired_before_it_runs():
    recipe = subprocess.run(
        ["make", "--dry-run", "--assume-old=setup", "repro"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert recipe.index("python -m classifier repair\n") < recipe.index("bin/dvc repro\n")


def test_set_up_does_nothing_when_nothing_changed_and_something_when_the_lock_did(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-uv.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.installed").write_text(f"{tmp_path}\n")
    assert subprocess.run(["make", "-q", "setup"], cwd=tmp_path).returncode == 0
    (tmp_path / ".venv/.installed").write_text("/where/it/was/before\n")
    assert subprocess.run(["make", "-q", "setup"], cwd=tmp_path).returncode == 1


def test_help_lists_every_target():
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"^\.PHONY: (\w+)", (ROOT / "Makefile").read_text(), re.MULTILINE):
        assert f"make {target}" in text


def test_ci_runs_the_test_command_and_the_checks():
    script = (ROOT / ".ci/run").read_text()
    assert script.index("make test") < script.index("make check")


@pytest.mark.parametrize(("name", "expected"), [("", str(os.getuid())), ("ada", "ada")])
def test_dvc_has_a_users_name_in_containers_too(name, expected):
    command = ["make", "--silent", "--eval", "shown: ; @echo $$USER", "shown"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "USER": name}, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n", done.stderr
