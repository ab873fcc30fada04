"""What a run records of its code: in real repositories, at their top and below, under any configuration of git's."""

import subprocess

import mlflow
import pytest

from classifier.errors import UserError
from classifier.repository.code import DECISIVE, LARGEST_NEW_FILE, LARGEST_NEW_FILES, code_paths, git_state
from classifier.repository.code_diff import Code, code_diff, code_ids
from classifier.repository.git import Repository, git, git_line
from classifier.repository.worktree import check_out
from classifier.runs.comparison import _code as code_of
from classifier.runs.promotion import unfit
from classifier.runs.reading import frame
from classifier.runs.reproduction import StoredRun
from tests.recorded import Workspace, get_run

ANYBODY = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
HOSTILE = """
[core]
    autocrlf = input
    safecrlf = true
    quotePath = true
    splitIndex = true
    fsmonitor = {folder}/fail
    hooksPath = {folder}/hooks
    attributesFile = {folder}/attributes
[color]
    ui = always
[diff]
    noprefix = true
    mnemonicPrefix = true
    renames = copies
    external = {folder}/fail
    context = 0
    interHunkContext = 9
    submodule = log
    relative = true
    suppressBlankEmpty = true
    algorithm = patience
    colorMoved = zebra
[diff "notebook"]
    textconv = {folder}/fail
[apply]
    whitespace = fix
[log]
    showSignature = true
[submodule]
    recurse = true
[status]
    showUntrackedFiles = no
[index]
    version = 4
[init]
    templateDir = {folder}/hooks
"""


def commit(folder):
    git(folder, "add", "--all", ".")
    git(folder, *ANYBODY, "commit", "--quiet", "--allow-empty", "--message", "x")
    return git_line(folder, "rev-parse", "HEAD")


def write(folder, **files):
    """By their names, with _ for a dot and __ for a slash."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture(params=["", "teams/secret vision"])
def project(request, tmp_path, monkeypatch):
    """A project of one commit at the top of a repository and below it, where something else was changed too."""
    top = tmp_path / "repository"
    folder = top / request.param
    folder.mkdir(parents=True)
    git(top, "init", "--quiet")
    write(folder, classifier__model_py="1\n", stages__train_py="1\n", dvc_yaml="1\n", dvc_lock="1\n", a_py="1\n")
    if request.param:
        write(top, other_py="1\n")
    commit(top)
    if request.param:
        write(top, other_py="2\n", new_py="1\n")
    monkeypatch.chdir(folder)
    return folder


def changed(state):
    return [line.split(b" b/")[-1].decode() for line in state.diff.splitlines() if line.startswith(b"diff --git ")]


def test_nothing_changed_is_no_diff(project):
    write(project, dvc_lock="2\n")  # which runs write
    state = git_state()
    assert (state.commit, state.diff, state.problem) == (git_line(project, "rev-parse", "HEAD"), b"", "")


def test_changed_new_and_removed_files_are_in_the_diff_and_the_repository_stays(project):
    write(project, a_py="2\n", sub__new_py="1\n", staged_py="1\n")
    git(project, "add", "staged.py")
    (project / "stages/train.py").unlink()
    index = (Repository.of(project).git_dir / "index").read_bytes()
    before = sorted((Repository.of(project).objects).rglob("*"))
    path = Repository.of(project).path
    state = git_state()
    assert changed(state) == [path(name) for name in ("a.py", "staged.py", "stages/train.py", "sub/new.py")]
    assert state.problem == ""
    assert sorted((Repository.of(project).objects).rglob("*")) == before
    assert (Repository.of(project).git_dir / "index").read_bytes() == index


def test_a_project_that_git_does_not_have_yet_is_a_diff(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    project = tmp_path / "new project"
    write(project, a_py="1\n")
    monkeypatch.chdir(project)
    assert changed(git_state()) == ["new project/a.py"]


def test_photos_and_secrets_are_left_out_and_named(project):
    for number in range(300):
        write(project, **{f"photos__{number:03}_jpg": bytes(60_000)})
    text = "hf_0123456789"
    secrets = (
        ".env",
        ".env.py",
        "id_rsa",
        "server.pem",
        "a.key",
        ".netrc",
        ".aws/config.toml",
        "credentials.json",
    )
    for name in (*secrets, "my-secrets/notes.md", "api_token.txt"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    write(project, tokenizer_py="1\n", keys_py="1\n")
    state = git_state()
    path = Repository.of(project).path
    assert changed(state) == [path("keys.py"), path("tokenizer.py")]
    assert text.encode() not in state.diff
    assert state.problem == (
        f"{path('.aws/config.toml')}, {path('.env')}, {path('.env.py')} and 7 more (may hold secrets); "
        f"{path('photos/000.jpg')}, {path('photos/001.jpg')}, {path('photos/002.jpg')} and 297 more "
        "(not in git, and not source files)"
    )
    assert state.warning == f"the code is not recorded completely: {state.problem}"


def test_the_users_images_and_weights_are_not_code(project):
    """They are recorded as data, wherever they are; what git tracks among them is code, as before."""
    write(project, photos__cat__1_txt="1\n", photos2__a_py="1\n", weights__a_txt="1\n")
    own = ["photos", str(project / "weights")]
    assert git_state(own).problem == ""
    assert changed(git_state(own)) == [Repository.of(project).path("photos2/a.py")]
    assert len(changed(git_state())) == 3


def test_a_secret_that_git_has_is_not_recorded_either(project):
    write(project, _env="A=\n", a_py="1\n")
    commit(project)
    write(project, _env="A=hf_0123456789\n", a_py="2\n")
    state = git_state()
    assert changed(state) == [Repository.of(project).path("a.py")]
    assert b"hf_0123456789" not in state.diff
    assert ".env (may hold secrets)" in state.problem


def test_a_changed_secret_alone_is_no_clean_commit_and_other_code(project):
    write(project, classifier__credentials_py="1\n")
    commit(project)
    clean = git_state()
    assert (clean.dirty, clean.diff) == (False, b"")
    write(project, classifier__credentials_py="2\n")
    changed_state = git_state()
    assert (changed_state.dirty, changed_state.diff) == (True, b"")
    assert changed_state.code != clean.code


def test_a_run_whose_only_change_is_a_secret_is_dirty_and_can_be_reproduced_as_far_as_it_is_known(workspace):
    git(workspace, "init", "--quiet")
    write(workspace, _gitignore="/*\n", credentials_py="1\n", dvc_yaml="1\n")
    git(workspace, "add", "--force", "credentials.py", "dvc.yaml")
    git(workspace, *ANYBODY, "commit", "--quiet", "--message", "x")
    write(workspace, credentials_py="2\n")
    run = get_run(Workspace().train())
    assert run.data.tags["git.dirty"] == "true"
    stored = StoredRun(run, mlflow.MlflowClient())
    stored.check()
    assert stored.code["uncommitted.diff"] == b""
    assert "credentials.py (may hold secrets)" in stored.warnings()[0]


def test_when_git_cannot_make_the_diff_nothing_is_called_clean(workspace, capsys):
    git(workspace, "init", "--quiet")
    write(workspace, _gitattributes="*.py filter=broken\n", _gitignore="/*\n", a_py="1\n", dvc_yaml="1\n")
    git(workspace, "add", "--force", "a.py", ".gitattributes", "dvc.yaml")
    git(workspace, *ANYBODY, "commit", "--quiet", "--message", "x")
    git(workspace, "config", "filter.broken.clean", "false")
    git(workspace, "config", "filter.broken.required", "true")
    write(workspace, a_py="2\n")
    run = get_run(Workspace().train())
    tags = run.data.tags
    assert "a.py" in tags["git.problem"]
    assert (tags["git.commit"], "git.dirty" in tags, "mlflow.classifier.code" in tags) == (
        git_state().commit,
        False,
        False,
    )
    assert capsys.readouterr().err.startswith("train: the code is not recorded completely: ")
    assert unfit(get_run(Workspace().evaluate())).startswith("it does not record what was changed since its commit: ")
    row = frame([run]).iloc[0]
    with pytest.raises(UserError, match=f"run {run.info.run_id} was recorded without its uncommitted changes"):
        code_of(row)


def test_new_files_are_bounded_one_by_one_and_together_the_smallest_come_first(project):
    write(project, large_py=bytes(LARGEST_NEW_FILE + 1), small_py="1\n")
    for number in range(7):
        write(project, **{f"n{number}_txt": bytes(LARGEST_NEW_FILE)})
    state = git_state()
    path = Repository.of(project).path
    assert LARGEST_NEW_FILES == 5 * LARGEST_NEW_FILE
    assert changed(state) == [path(name) for name in ("n0.txt", "n1.txt", "n2.txt", "n3.txt", "small.py")]
    names = ", ".join(path(name) for name in ("large.py", "n4.txt", "n5.txt"))
    assert state.problem == f"{names} and 1 more (new files of over 1 MiB, or 5 MiB together)"


def test_code_is_known_by_what_it_holds_committed_or_not(project):
    first = git_state()
    write(project, a_py="2\n", dvc_lock="3\n")  # neither of which makes results
    assert git_state().code == first.code
    write(project, classifier__model_py="2\n")
    changed_state = git_state()
    assert changed_state.code != first.code
    written = Code(changed_state.commit, changed_state.diff)
    last = commit(project)
    assert git_state().code == changed_state.code
    ids = code_ids([written, Code(last), Code(first.commit), Code("0" * 40)], project)  # as before there was a tag
    assert ids == {written: changed_state.code, Code(last): changed_state.code, Code(first.commit): first.code}
    assert set(DECISIVE) <= {path.name for path in project.iterdir()}
    assert "-1\n+2\n" in code_diff(Code(first.commit), written, project)


PIPELINE = """
stages:
  train: {cmd: x, deps: [stages/train.py, classifier/networks, data/raw], outs: [{models: {persist: true}}, data/out]}
  evaluate: {cmd: x, deps: [../models, ../data/out, ../stages/evaluate.py], wdir: reports}
  each: {foreach: [1], do: {cmd: x, deps: [{own/library: {}}]}}
"""


def test_the_code_that_makes_results_is_what_dvc_yaml_names(project):
    assert code_paths(PIPELINE.encode()) == [
        *("classifier/networks", "data/raw", "dvc.yaml", "own/library", "stages/evaluate.py", "stages/train.py")
    ]
    write(project, dvc_yaml=PIPELINE, classifier__networks__a_py="1\n", classifier__commands_py="1\n")
    commit(project)
    first = git_state()
    write(project, classifier__commands_py="2\n", stages__other_py="1\n")
    other = git_state()
    assert other.code == first.code
    assert set(code_ids([Code(other.commit, other.diff), Code(first.commit)], project).values()) == {first.code}
    known = {first.code}
    for name in ("classifier__networks__a", "classifier__networks__b", "stages__evaluate", "own__library__c"):
        write(project, **{f"{name}_py": "2\n"})
        assert git_state().code not in known
        known.add(git_state().code)
    write(project, dvc_yaml=PIPELINE + "\n")
    assert git_state().code not in known


@pytest.mark.parametrize("pipeline", [b"", b"1", b"a: [", b"stages:", b"stages: [1]", b"plots: []"])
def test_a_pipeline_that_names_no_code_is_known_by_all_of_it(pipeline):
    assert code_paths(pipeline) == ["stages", "classifier", "dvc.yaml"]


def test_the_users_configuration_changes_no_patch(project, tmp_path, monkeypatch):
    """Applied to the commit it gives the tree that git itself makes of the folder."""
    lines = "".join(f"{number} \n\n" for number in range(30))
    write(
        project, notebook_ipynb=lines, gone_py="1\n", ö_py=lines, mixed_py="1\r\n2\n", a_py="1\n", b_md=bytes([0, 200])
    )
    (project / "link.py").symlink_to("a.py")
    first = commit(project)
    (tmp_path / "hooks").mkdir()
    for name in ("fail", "hooks/post-checkout", "hooks/post-index-change"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "attributes").write_text("*.ipynb diff=notebook\n")
    (tmp_path / "hostile").write_text(HOSTILE.format(folder=tmp_path))

    edited = lines.replace("15 ", "fifteen")
    write(
        project,
        notebook_ipynb=edited,
        ö_py=edited,
        mixed_py="1\r\n3\r\n4\n",
        b_md=bytes([0, 201]),
        new_é_py=lines,
        crlf_py="1\r\n",
    )
    (project / "gone.py").rename(project / "moved.py")
    (project / "a.py").chmod(0o755)
    (project / "link.py").unlink()
    (project / "link.py").symlink_to("moved.py")

    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "hostile"))
    monkeypatch.setenv("GIT_DIFF_OPTS", "-u0")
    state = git_state()
    assert state.problem == ""
    again = tmp_path / "again"
    check_out(Repository.of(project), again, first, state.diff)
    tree = git_line(again, "write-tree")
    assert git_state() == state

    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.delenv("GIT_DIFF_OPTS")
    subprocess.run(["git", "-c", "core.autocrlf=input", "add", "--all", "."], check=True, stderr=subprocess.DEVNULL)
    expected = git_line(project, "write-tree")
    with Repository.of(project).scratch() as scratch:
        assert scratch.tree(first, state.diff) == expected == tree
    repeated = again / Repository.of(project).prefix
    assert (repeated / "notebook.ipynb").read_text() == edited
    assert (repeated / "new.é.py").read_text() == lines


def test_outside_git_there_is_no_state(monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    state = git_state()
    assert (state.commit, state.diff, state.code) == (None, b"", "")
    assert "not a git repository" in state.problem
    assert state.warning == f"no commit is recorded: {state.problem}"


def test_what_is_not_recorded_is_a_line_on_the_console_and_a_tag(workspace, capsys):
    run_id = Workspace().train()
    problem = get_run(run_id).data.tags["git.problem"]
    assert "not a git repository" in problem
    assert capsys.readouterr().err == f"train: no commit is recorded: {problem}\n"
    git(workspace, "init", "--quiet")
    write(workspace, _gitignore="/*\n", classifier__model_py="1\n", stages__train_py="1\n", dvc_yaml="1\n")
    git(workspace, "add", "--force", "classifier", "stages", "dvc.yaml")
    git(workspace, *ANYBODY, "commit", "--quiet", "--message", "x")
    tags = get_run(Workspace().train()).data.tags
    assert (tags["mlflow.classifier.code"], tags["git.dirty"]) == (git_state().code, "false")
    assert capsys.readouterr().err == ""


def test_another_owners_checkout_names_the_remedy(project, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    state = git_state()
    assert state.commit is None
    assert "dubious ownership" in state.problem
    assert "git config --global --add safe.directory" in state.problem


def test_a_repository_without_commits_names_the_remedy(monkeypatch, tmp_path):
    git(tmp_path, "init", "--quiet")
    monkeypatch.chdir(tmp_path)
    assert git_state().problem == f"{tmp_path} is a git repository without commits: git add ., then git commit"


def test_without_git_there_is_no_state(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert git_state().problem == "git is not installed"
