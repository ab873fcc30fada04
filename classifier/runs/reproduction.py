"""Reproduces a recorded run from MLflow, git and DVC, and compares the results byte for byte.

Commit, uncommitted diff and params.yaml are taken from the run; the data are found by their DVC hash. Training and
evaluation run in a temporary checkout with its own store. The run, the workspace and the caches are not changed.
"""

from __future__ import annotations

import ast
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from ruamel.yaml import YAML

from classifier.errors import UserError
from classifier.params import upgraded
from classifier.project.files import sha256, write_atomic
from classifier.project.lineage import project_root
from classifier.recording.run import SECONDS
from classifier.recording.tags import (
    COMMIT_TAG,
    DATA_TAG,
    DIRTY_TAG,
    ENVIRONMENT,
    ERROR_TAG,
    EVALUATED_TAG,
    MODEL_TAG,
    PARENT_TAG,
    PROBLEM_TAG,
    SEED_TAG,
    TEST_TAG,
    WEIGHTS_TAG,
    upgraded_tags,
)
from classifier.repository.dvc import complaint
from classifier.repository.lockfile import hash_of
from classifier.repository.outputs import DATA
from classifier.repository.worktree import worktree
from classifier.runs.checkout import Checkout
from classifier.runs.reading import SWEEP, is_sweep

REPORTS = ("train", "evaluate")  # folders of artifacts
MEASURED = ("system/", SECONDS, "data/")  # not compared: metrics of the machine, and of the data, compared by hash
COMPUTATION = ("arithmetic", "instructions", "parts", "device")  # of the environment: how results are computed
NATIVE = ("cpu", "threads")  # these also affect the results in native arithmetic
RECORDED = "recorded"  # the name under which DVC fetches the data by their hash


@dataclass(frozen=True)
class Finding:
    """One compared item; None for a missing value."""

    kind: str  # params, data, error, weights, metrics, reports or environment
    name: str
    recorded: str | None
    reproduced: str | None

    @property
    def same(self) -> bool:
        return self.recorded == self.reproduced


@dataclass(frozen=True)
class ReproductionReport:
    """The result of a reproduction. A different environment can explain a difference, but does not count as one."""

    run_id: str
    commit: str
    findings: list[Finding]
    warnings: list[str]  # not recorded, may explain a difference
    missing: list[str]  # not recorded, cannot be compared
    folder: Path | None  # the checkout, if it was kept

    @property
    def differences(self) -> list[Finding]:
        return [each for each in self.findings if not each.same and each.kind != "environment"]

    @property
    def environment(self) -> list[Finding]:
        return [each for each in self.findings if not each.same and each.kind == "environment"]

    @property
    def computation(self) -> list[Finding]:
        """Differences in how results are computed. Processor and threads count only in native arithmetic."""
        portable = Finding("environment", "arithmetic", "portable", "portable") in self.findings
        names = COMPUTATION if portable else COMPUTATION + NATIVE
        return [each for each in self.environment if each.name in names]

    @property
    def identical(self) -> bool:
        return not self.differences and not self.missing

    @property
    def compared(self) -> dict[str, int]:
        """Number of compared items by kind."""
        kinds = [each.kind for each in self.findings if each.kind != "environment"]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "run": self.run_id,
            "commit": self.commit,
            "identical": self.identical,
            "compared": self.compared,
            "warnings": self.warnings,
            "missing": self.missing,
            "computation": [asdict(each) for each in self.computation],
            "differences": [asdict(each) for each in self.differences],
            "environment": [asdict(each) for each in self.environment],
            "folder": str(self.folder) if self.folder else None,
        }


class StoredRun:
    """A recorded run, read from MLflow's store."""

    def __init__(self, run: Run, client: mlflow.MlflowClient) -> None:
        self.run = run
        self.id: str = run.info.run_id
        self.status: str = run.info.status
        self.tags = upgraded_tags(run.data.tags)
        self.params: dict[str, str] = run.data.params
        self.metrics = {name: value for name, value in run.data.metrics.items() if not name.startswith(MEASURED)}
        self.error = self.tags.get(ERROR_TAG) if self.status == "FAILED" else None
        self.client = client
        self.folders = {each.path for each in client.list_artifacts(self.id)}
        self.code = self.files("code")

    def files(self, folder: str) -> dict[str, bytes]:
        """The files of an artifact folder by their paths in it; empty if it was not recorded."""
        if folder not in self.folders:
            return {}
        with tempfile.TemporaryDirectory() as place:
            found = Path(self.client.download_artifacts(self.id, folder, place))
            return {
                path.relative_to(found).as_posix(): path.read_bytes() for path in found.rglob("*") if path.is_file()
            }

    @property
    def environment(self) -> dict[str, str]:
        """Name -> value: the versions of all packages, if recorded, and the tags env.*."""
        packages = json.loads(self.code.get("environment.json", b"{}")).get("packages", {})
        tags = {name: value for name, value in self.tags.items() if name.startswith(ENVIRONMENT)}
        return {**packages, **{name.removeprefix(ENVIRONMENT): value for name, value in tags.items()}}

    @property
    def portable(self) -> bool:
        """Whether the results are independent of the processor and the number of threads."""
        if not self.environment:  # of a run that evaluate or record made
            return self.params.get("train.arithmetic") == "portable"
        return self.environment.get("arithmetic") == "portable"

    def check(self) -> None:
        """Raise UserError or FileNotFoundError if this run cannot be reproduced."""
        tags = self.tags
        if SEED_TAG in tags:
            parent = tags[PARENT_TAG]
            raise UserError(f"run {self.id} is seed {tags[SEED_TAG]} of run {parent}: classifier reproduce {parent}")
        if WEIGHTS_TAG not in tags and is_sweep(self.run):
            raise UserError(f"run {self.id} {SWEEP} reproduce")
        if self.status != "FINISHED" and not (self.status == "FAILED" and self.error):
            raise UserError(
                f"run {self.id} is {self.status}: only runs that FINISHED, or FAILED with an error, can be reproduced"
            )
        if COMMIT_TAG not in tags:
            why = tags.get(PROBLEM_TAG, f"no tag {COMMIT_TAG}")
            raise UserError(f"run {self.id} was recorded without its commit ({why}); correct that, then dvc repro")
        if DATA_TAG not in tags:
            raise UserError(f"run {self.id} does not record its data: only runs of dvc repro do")
        if tags.get(DIRTY_TAG) == "true" and "uncommitted.diff" not in self.code:
            raise FileNotFoundError(
                f"the uncommitted changes of run {self.id} are not in the store: code/uncommitted.diff"
            )

    def warnings(self) -> list[str]:
        """What was not recorded and may explain a difference."""
        tags, lacks = self.tags, []
        if PROBLEM_TAG in tags:
            lacks.append(f"the run's code was not recorded completely: {tags[PROBLEM_TAG]}")
        if "threads" not in self.environment and not self.portable:
            lacks.append("the number of threads, on which results depend, was not recorded: set OMP_NUM_THREADS")
        return lacks

    def missing(self) -> list[str]:
        """What a finished run did not record, so that the reproduction cannot be called identical."""
        if self.status != "FINISHED":
            return []
        lacks = [] if WEIGHTS_TAG in self.tags else [f"its weights: the run has no tag {WEIGHTS_TAG}"]
        expected = REPORTS if EVALUATED_TAG in self.tags else REPORTS[:1]
        return [
            *lacks,
            *(f"its reports: {name}/ is not among its artifacts" for name in expected if not self.files(name)),
        ]


def reproduce(run: Run, *, keep: bool = False) -> ReproductionReport:
    """Reproduce the run and compare. The output of its stages goes to standard error.

    Raises UserError or OSError if something is missing, and says how to get it.
    """
    record = StoredRun(run, mlflow.MlflowClient())
    record.check()
    root, commit = project_root(), record.tags[COMMIT_TAG]
    with worktree(root, commit, record.code.get("uncommitted.diff", b""), keep=keep) as project:
        params = project / "params.yaml"
        file = params.read_bytes()
        recorded = record.code.get("params.yaml")
        write_atomic(params, with_sections(file, recorded) if recorded else with_params(file, record.params))
        if "dvc.lock" in record.code:  # also contains the hash of the original files
            write_atomic(project / "dvc.lock", record.code["dvc.lock"])
        threads = None if record.portable else record.tags.get(f"{ENVIRONMENT}threads")
        reproduction = Reproduction(project, root, commit, threads)
        reproduction.bring_data(record.tags[DATA_TAG])
        repeated = reproduction.execute(evaluate=record.error is not None or EVALUATED_TAG in record.tags)
        findings = [*compare_data(record, project / DATA), *compare(record, repeated, reproduction.error)]
        return ReproductionReport(
            record.id, commit, findings, record.warnings(), record.missing(), project if keep else None
        )


def with_sections(file: bytes, recorded: bytes) -> bytes:
    """Content of params.yaml with a run's sections. A run of `classifier record` has only those of the stages."""
    yaml = YAML(typ="safe", pure=True)
    return json.dumps(yaml.load(file) | yaml.load(recorded)).encode()  # JSON is YAML


def with_params(file: bytes, params: Mapping[str, str]) -> bytes:
    """Content of params.yaml with the values of a run's params, which MLflow stores as text."""
    tree = YAML(typ="safe", pure=True).load(file)
    for name, text in params.items():
        section, _, key = name.partition(".")
        try:
            tree[section][key] = ast.literal_eval(text)  # None, True, 0.05, [0.5]
        except (ValueError, SyntaxError):
            tree[section][key] = text
    return json.dumps(tree).encode()  # JSON is YAML


class Reproduction(Checkout):
    """Runs the stages of a recorded run in the checkout."""

    def __init__(self, project: Path, root: Path, commit: str, threads: str | None) -> None:
        super().__init__(project, root)
        self.commit = commit
        self.error: str | None = None  # why training or evaluation failed
        if threads:
            self.environment["OMP_NUM_THREADS"] = threads  # the order of summation depends on it

    def bring_data(self, wanted: str) -> None:
        """Get `data/normalized` with this hash from the cache or a remote, or download the original files again.

        Raises FileNotFoundError, quoting DVC, if that fails. Downloaded data may differ, which `compare_data` detects.
        """
        said = []
        if wanted.endswith(".dir"):
            if self._bring_by_hash(wanted):
                return
            said.append(f"dvc pull: {complaint(self.output)}")
        remake = ["repro", "--no-run-cache", "--no-commit"]
        for way in (["--pull", "normalize"], ["--force", "normalize"]):  # the cache may hold corrupt files
            if not self.dvc(*remake, *way) and wanted in data_digests(self.project / DATA):
                return
        if not (self.project / DATA).is_dir():
            said.append(f"dvc repro normalize: {complaint(self.output)}")
            raise FileNotFoundError(
                f"the data {wanted} could not be restored ({'; '.join(said)}); "
                + (f"copy the images to {self.lacking}; " if self.lacking else "")
                + "if a remote has the data: dvc remote add -d NAME ADDRESS, then dvc pull"
            )

    def _bring_by_hash(self, wanted: str) -> bool:
        pointer, place = self.project / f"{RECORDED}.dvc", self.project / RECORDED
        pointer.write_text(json.dumps({"outs": [{"path": RECORDED, "hash": "md5", "md5": wanted}]}), encoding="utf-8")
        try:
            for way in ("checkout", "pull"):
                self.dvc(way, pointer.name, shown=False)
                if hash_of(place) == wanted:
                    (self.project / DATA).parent.mkdir(parents=True, exist_ok=True)
                    place.rename(self.project / DATA)
                    return True
            return False
        finally:
            pointer.unlink()

    def execute(self, *, evaluate: bool) -> StoredRun | None:
        """Train and evaluate without caches. Returns None if no run was recorded."""
        stages = YAML(typ="safe", pure=True).load(self.project / "dvc.yaml")["stages"]
        if "pretrained" in stages:  # train also reads its output; older code has no such stage
            self.dvc("repro", "--no-commit", "--pull", "--single-item", "pretrained")
        which = ["--downstream", "train"] if evaluate else ["--single-item", "train"]
        failed = self.dvc("repro", "--force", "--no-run-cache", "--no-commit", *which)
        record = self._record()
        if failed:
            self.error = (record.error if record else None) or complaint(self.output)
        elif record is None or record.status == "RUNNING":
            raise OSError("the stages ran, but MLflow did not record them in time: try again on a less busy machine")
        return record

    def _record(self) -> StoredRun | None:
        if not (self.project / "mlflow.db").exists():
            return None
        client = mlflow.MlflowClient(self.environment["MLFLOW_TRACKING_URI"])
        experiments = [each.experiment_id for each in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.`{COMMIT_TAG}` = '{self.commit}'")  # not the nested ones of seeds
        return StoredRun(runs[0], client) if runs else None


def compare_data(record: StoredRun, folder: Path) -> Iterator[Finding]:
    """Compare the normalized data."""
    wanted, found = record.tags[DATA_TAG], data_digests(folder)
    yield Finding("data", str(DATA), wanted, wanted if wanted in found else found[0])


def data_digests(folder: Path) -> list[str | None]:
    """Possible values of the tag dvc.data for this folder: DVC's hash or, in old runs, that of the training split."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        return [hash_of(folder), meta["sha256"]["train"][:32]]
    except (OSError, ValueError, KeyError):
        return [hash_of(folder)]


def compare(record: StoredRun, again: StoredRun | None, error: str | None) -> Iterator[Finding]:
    """Compare everything recorded with the reproduction; `error`: why the reproduction failed."""
    if again:
        names = record.environment.keys() | again.environment.keys() if record.environment else set()
        for name in dict.fromkeys([*(name for name in COMPUTATION + NATIVE if name in names), *sorted(names)]):
            yield Finding("environment", name, record.environment.get(name), again.environment.get(name))
    if record.error or error:
        yield Finding("error", "error", record.error, error)
    if not again or (error and not record.error):
        return
    params = upgraded(again.params)  # a run created from outputs has the current names, even if older code wrote them
    for name, text in upgraded(record.params).items():
        yield Finding("params", name, text, params.get(name))
    for kind, name, tag in (
        ("data", "test split", TEST_TAG),
        ("weights", "weights.safetensors", WEIGHTS_TAG),
        ("weights", "model directory", MODEL_TAG),
    ):
        if tag in record.tags:
            yield Finding(kind, name, record.tags[tag], again.tags.get(tag))
    for name, value in record.metrics.items():
        found = again.metrics.get(name)
        yield Finding("metrics", name, repr(value), None if found is None else repr(found))
    for folder in REPORTS:
        if recorded := record.files(folder):
            repeated = again.files(folder)
            for name in sorted(recorded.keys() | repeated.keys()):
                yield Finding("reports", f"{folder}/{name}", _digest(recorded.get(name)), _digest(repeated.get(name)))


def _digest(content: bytes | None) -> str | None:
    return None if content is None else sha256(content)
