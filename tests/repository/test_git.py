"""Git as the project runs it, with real repositories."""

import subprocess
from pathlib import Path

import gto.tag
import pytest

from classifier.repository.git import Repository, git, git_line

ANYBODY = ("-c", "user.name=Test", "-c", "user.email=test@example.org")


def commit(folder, message="x"):
    git(folder, "add", "--all")
    git(folder, *ANYBODY, "commit", "--quiet", "--allow-empty", "--message", message)
    return git_line(folder, "rev-parse", "HEAD")


@pytest.fixture
def top(tmp_path):
    """An empty repository whose path has to be quoted for git."""
    folder = tmp_path / 'a: "b" ü'
    folder.mkdir()
    git(folder, "init", "--quiet")
    return folder


def test_names_of_a_project_in_a_subfolder_are_those_of_the_repository(top):
    project = top / "teams/vision"
    project.mkdir(parents=True)
    repository = Repository.of(project)
    assert (repository.top, repository.prefix) == (top, "teams/vision/")
    assert repository.path("models/classifier") == "teams/vision/models/classifier"
    tag = gto.tag.parse_name(f"{repository.artifact('classifier')}@v1.0.0")
    assert (tag["name"], tag["version"]) == ("teams/vision:classifier", "v1.0.0")


def test_names_of_a_project_at_the_top_are_those_of_the_repository(top):
    repository = Repository.of(top)
    assert (repository.path(Path("dvc.lock")), repository.artifact("classifier")) == ("dvc.lock", "classifier")


def test_what_git_refuses_is_one_line(top, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match=r"^git rev-parse: fatal: not a git repository [^\n]*$"):
        Repository.of(tmp_path)
    with pytest.raises(ValueError, match=r"is a git repository without commits: git add \., then git commit$"):
        Repository.of(top).head()
    with pytest.raises(ValueError, match=r"^commit abc0123 is not in this repository: git fetch origin abc0123$"):
        Repository.of(top).require("abc0123")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ValueError, match=r"^git is not installed$"):
        Repository.of(top)


def test_variables_of_a_git_hook_do_not_lead_elsewhere(top, tmp_path, monkeypatch):
    """Git sets them for its hooks, from which a person may start the pipeline."""
    git(tmp_path, "init", "--quiet", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other/.git/index"))
    assert Repository.of(top).git_dir == top / ".git"
    (top / "a").touch()
    git(top, "add", "a")
    assert not (tmp_path / "other/.git/index").exists()


def test_a_scratch_tree_leaves_the_repository_alone(top):
    (top / "a").write_text("1\n")
    first = commit(top)
    (top / "a").write_text("2\n")
    patch = subprocess.run(["git", "diff", "HEAD"], cwd=top, capture_output=True, check=True).stdout

    def state():
        return {path: path.stat().st_mtime_ns for path in sorted((top / ".git").rglob("*"))}

    before = state()
    with Repository.of(top).scratch() as scratch:
        tree = scratch.tree(first, patch)
        assert scratch.git("show", f"{tree}:a") == b"2\n"
        assert scratch.patch(first, tree).startswith(b"diff --git a/a b/a\n")
        with pytest.raises(ValueError, match=f"the recorded diff does not fit its commit {first}: git apply: error"):
            scratch.tree(first, patch.replace(b"-1", b"-3"))
    assert state() == before
