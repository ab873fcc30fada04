"""Data and models on DVC remotes, S3's protocol and a folder: shared, released by git tag, whole whatever breaks."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from classifier.data.dataset import read_meta
from classifier.networks.model_dir import build, write_model
from classifier.project.files import sha256_of
from classifier.repository.git import Repository
from classifier.training.report import write_training
from tests.projects import Project
from tests.recorded import METRICS, ROWS
from tests.samples import COSTS
from tests.servers import Line, s3_server

pytestmark = pytest.mark.slow

WEIGHTS = "models/classifier/weights.safetensors"
DVC = Path(sys.executable).parent / "dvc"
OPEN = """
import dvc.api, hashlib, sys
repo, path, rev = sys.argv[1:]
with dvc.api.open(path, repo=repo, rev=rev, mode="rb") as file:
    print(hashlib.sha256(file.read()).hexdigest())
"""


class Member(Project):
    """A team member's clone; its commands find the S3 server. `prefix`: the project's folder in the repository."""

    def __init__(self, folder, extra, origin=None, prefix=""):
        self.folder, self.extra = folder / prefix, extra
        if origin:
            subprocess.run(["git", "clone", "-q", origin, folder], check=True)
        else:
            super().__init__(folder)

    @property
    def variables(self):
        return super().variables | self.extra

    def dvc(self, *arguments, check=True):
        return self.run("dvc", *arguments, check=check)

    def cached(self):
        """Content by DVC's place for it, `files/md5/ab/cdef...`."""
        return {
            place: content for place, content in files_below(self.folder / ".dvc/cache").items() if is_object(place)
        }

    def train(self, seed):
        """Commits outputs of the kinds that train and evaluate write, without the time that these take."""
        meta = read_meta(self.folder / "data/normalized")
        write_model(self.folder / "models/classifier", {seed: build(meta, seed)}, seed, meta)
        write_training(self.folder / "reports/train", {seed: ROWS}, seed, COSTS)
        (self.folder / "reports/evaluate").mkdir(exist_ok=True)
        (self.folder / "reports/evaluate/metrics.json").write_text(json.dumps(METRICS | {"seed": seed}))
        self.dvc("commit", "--force", "train", "evaluate")
        self.commit(f"seed {seed}")


class Remote:
    """A DVC remote that all clones know by its name."""

    def __init__(self, name, read):
        self.name, self.read = name, read

    def objects(self):
        """As Member.cached; the temporary file of a push that was killed is none."""
        return {place: content for place, content in self.read().items() if is_object(place)}


def is_object(place):
    return re.fullmatch(r"files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?", place)


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_whole(objects):
    """Every object's content is what its name says, and no folder is there without all of its files."""
    for place, content in objects.items():
        assert "".join(place.removesuffix(".dir").split("/")[-2:]) == hashlib.md5(content).hexdigest()
        for file in json.loads(content) if place.endswith(".dir") else []:
            assert f"files/md5/{file['md5'][:2]}/{file['md5'][2:]}" in objects


@pytest.fixture(scope="module")
def s3():
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def line(s3):
    line = Line(s3.address)
    yield line
    line.close()


@pytest.fixture(scope="module")
def bucket(s3):
    return s3.new_bucket()


@pytest.fixture(scope="module")
def author(s3, line, bucket, tmp_path_factory):
    """Has results, committed but not pushed, and names two remotes; the tests of this module use it in any order."""
    folder = tmp_path_factory.mktemp("team")
    author = Member(folder / "author", s3.variables)
    author.dvc("repro", "normalize", "pretrained")
    author.train(seed=0)
    author.dvc("remote", "add", "--default", "team", f"s3://{bucket}/lenet")
    author.dvc("remote", "modify", "team", "endpointurl", line.address)
    author.dvc("remote", "add", "folder", str(folder / "remote"))
    for remote in ("team", "folder"):
        author.dvc("remote", "modify", remote, "verify", "true")
    author.commit("remotes")
    author.origin = folder / "origin.git"
    author.git("clone", "-q", "--bare", ".", str(author.origin))
    return author


@pytest.fixture
def team(s3, line, bucket):
    """The remote on S3, empty."""
    line.restore()
    s3.empty(bucket)
    return Remote("team", lambda: {key.removeprefix("lenet/"): body for key, body in s3.objects(bucket).items()})


@pytest.fixture
def folder(author):
    """The remote in a folder."""
    return Remote("folder", lambda: files_below(author.origin.parent / "remote"))


@pytest.fixture
def clone(author, tmp_path):
    return Member(tmp_path / "clone", author.extra, author.origin)


@pytest.mark.parametrize("name", ["team", "folder"])
def test_a_clone_elsewhere_pulls_everything_and_runs_nothing(name, author, clone, request):
    remote = request.getfixturevalue(name)
    author.dvc("push", "--remote", name)
    assert remote.objects() == author.cached()
    clone.dvc("pull", "--remote", name)
    assert clone.hashes() == author.hashes()
    assert clone.repro() == []
    assert clone.git("status", "--porcelain") == ""


def test_a_remote_that_dies_in_a_push_has_whole_files_only_and_a_second_push_finishes(author, team, line, clone):
    everything = author.cached()
    line.cut_after(sum(map(len, everything.values())) // 2)
    output = author.dvc("push", check=False)
    assert line.is_cut
    assert author.returncode != 0
    assert "ERROR: failed to transfer" in output
    line.restore()
    arrived = team.objects()
    assert len(arrived) < len(everything)
    check_whole(arrived)

    output = clone.dvc("pull", check=False)
    assert clone.returncode != 0
    assert "ERROR: failed to pull data from the cloud" in output
    assert clone.hashes().items() < author.hashes().items()

    author.dvc("push")
    assert team.objects() == everything
    clone.dvc("pull")
    assert clone.hashes() == author.hashes()


def remove_empty(folder):
    """As README says: DVC tries to clone a file and makes an empty one for that, which a kill just then leaves."""
    subprocess.run(["find", folder, "-type", "f", "-empty", "!", "-path", "*/d4/1d8cd98f*", "-delete"], check=True)


def test_a_push_to_a_folder_that_is_killed_is_finished_by_a_second_one(author, folder, tmp_path):
    """The folder of the remote is still empty."""
    folder = Remote("new", lambda: files_below(tmp_path))
    author.dvc("remote", "add", "--local", "--force", "new", str(tmp_path))
    push = subprocess.Popen([DVC, "push", "--quiet", "--remote", "new"], cwd=author.folder)
    while push.poll() is None and not any(tmp_path.glob("files/md5/*/*")):
        pass
    push.kill()
    assert push.wait() == -9
    remove_empty(tmp_path)
    check_whole(folder.objects())
    author.dvc("push", "--remote", "new")
    assert folder.objects() == author.cached()


@pytest.mark.parametrize("listing", [True, False])
def test_an_empty_file_that_a_killed_push_left_in_a_folder_is_pushed_again(author, folder, tmp_path, listing):
    """The listing of a folder, which DVC sends last and refuses when it is empty, or one of its files."""
    place = next(place for place in sorted(author.cached()) if place.endswith(".dir") is listing)
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    author.dvc("remote", "add", "--local", "--force", "new", str(tmp_path))
    said = author.dvc("push", "--remote", "new", check=False)
    assert ("is corrupted" in said) == (author.returncode != 0) == listing
    remove_empty(tmp_path)
    author.dvc("push", "--remote", "new")
    assert Remote("new", lambda: files_below(tmp_path)).objects() == author.cached()


def test_a_pull_that_breaks_off_is_finished_by_a_second_one(author, team, line, clone):
    author.dvc("push")
    line.cut_after(20_000)  # bytes of requests: some of the files
    clone.dvc("pull", check=False)
    assert line.is_cut
    assert clone.returncode != 0
    assert clone.hashes().items() < author.hashes().items()
    line.restore()
    clone.dvc("pull")
    assert clone.hashes() == author.hashes()


def test_a_damaged_object_is_refused(author, team, s3, bucket, clone):
    author.dvc("push")
    content = (author.folder / WEIGHTS).read_bytes()
    (place,) = (place for place, body in team.objects().items() if body == content)
    s3.put(bucket, f"lenet/{place}", bytes([content[0] ^ 1]) + content[1:])
    output = clone.dvc("pull", check=False)
    assert clone.returncode != 0
    assert "models/classifier" in output
    assert not (clone.folder / WEIGHTS).exists()
    s3.put(bucket, f"lenet/{place}", content)
    clone.dvc("pull")
    assert clone.hashes() == author.hashes()


def user_in(folder, member):
    """Someone in a folder that neither git nor DVC knows, with the member's access to the S3 server."""
    user = Member.at(folder)
    user.extra = member.extra
    return user


def test_released_models_and_their_data_come_by_git_tag_without_a_clone(author, team, clone, tmp_path):
    author.dvc("push")
    clone.dvc("pull", "normalize", "pretrained")
    clone.train(seed=1)
    clone.dvc("push")
    weights = {}
    for member, version in ((author, "v1.0.0"), (clone, "v1.1.0")):
        member.git("tag", "--annotate", f"classifier@{version}", "--message", "released")
        member.git("push", "-q", str(author.origin), f"classifier@{version}")
        weights[version] = sha256_of(member.folder / WEIGHTS)
    assert len(set(weights.values())) == 2

    user = user_in(tmp_path, author)
    path = ["get", str(author.origin), "models/classifier", "--rev", "classifier@v1.0.0"]
    name = ["artifacts", "get", str(author.origin), "classifier"]
    for command, version in ((path, "v1.0.0"), ([*name, "--rev", "v1.0.0"], "v1.0.0"), (name, "v1.1.0")):  # the newest
        out = tmp_path / f"{command[0]} {len(command)}"
        user.dvc(*command, "--out", out.name)
        assert files_below(out).keys() == {"weights.safetensors", "meta.json"}
        assert sha256_of(out / "weights.safetensors") == weights[version]
    for path in (WEIGHTS, "data/normalized/test.safetensors"):
        printed = user.run(sys.executable, "-c", OPEN, str(author.origin), path, "classifier@v1.0.0")
        assert printed.split()[-1] == sha256_of(author.folder / path)


def test_a_project_in_a_subfolder_of_its_repository_is_shared_and_released(author, team, tmp_path):
    top, prefix, origin = tmp_path / "repository", "teams/vision", str(tmp_path / "origin.git")
    project = author.copy(top / prefix)
    shutil.rmtree(project.folder / ".git")
    project.git("init", "-q", "-b", "main", str(top))
    project.commit("results")
    artifact = Repository.of(project.folder).artifact("classifier")
    project.git("tag", "--annotate", f"{artifact}@v1.0.0", "--message", "released")
    project.git("clone", "-q", "--bare", str(top), origin)
    project.dvc("push")
    assert team.objects() == project.cached()

    clone = Member(tmp_path / "clone", author.extra, origin, prefix)
    clone.dvc("pull")
    assert clone.hashes() == project.hashes() == author.hashes()
    assert clone.repro() == []
    assert clone.git("status", "--porcelain") == ""

    (tmp_path / "user").mkdir()
    user = user_in(tmp_path / "user", author)
    user.dvc("get", origin, f"{prefix}/models/classifier", "--rev", f"{artifact}@v1.0.0", "--out", "by path")
    user.dvc("artifacts", "get", origin, artifact.replace("=", ":"), "--rev", "v1.0.0", "--out", "by name")
    for out in ("by path", "by name"):
        assert files_below(user.folder / out) == files_below(project.folder / "models/classifier")
