"""Uploads journals to MLflow's store, each event exactly once, with any number of attempts.

Runs are identified by the tag `KEY_TAG`, points of a metric by step and value, so that nothing is sent twice after a
connection failed or a training was killed and resumed. One process at a time uploads a project's journals
(`classifier.recording.deliverer`), oldest first.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict

import mlflow
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    RunTag,
)
from mlflow.entities import Run as MlflowRun

from classifier.errors import UserError
from classifier.params import upgraded
from classifier.project.checksummed import newer_format
from classifier.project.ownership import claim
from classifier.recording.deliverer import delivering
from classifier.recording.journal import FORMAT, Event, Journal, waiting_journals
from classifier.recording.run import Outputs, test_metrics
from classifier.recording.store import is_known_store
from classifier.recording.tags import (
    BASELINE_TAG,
    ERROR_TAG,
    EVALUATED_TAG,
    EVALUATION_TAG,
    EXPERIMENT_TAG,
    KEY_TAG,
    NAME_TAG,
    NOTE_TAG,
    PARENT_TAG,
    RENAMED,
    SEED_TAG,
    SOURCE_NAME_TAG,
    SOURCE_TYPE_TAG,
    USER_TAG,
    WEIGHTS_TAG,
    upgraded_tags,
)
from classifier.tracking.connection import open_store, runs_with_tag
from classifier.tracking.description import description_of, subject_of, title_of
from classifier.tracking.errors import StoreError, explained
from classifier.tracking.stored_model import log_model


class Delivery:
    """Uploads one journal's events to the store, in order."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.offset = 0  # bytes of the journal that were uploaded
        self.run_id = self.name = ""
        self.made_here = False  # this journal created the run
        self.seeds: dict[int, str] = {}  # seed -> id of its nested run
        self.described: set[int] = set()  # seeds whose nested runs have their params
        self.waiting: dict[str, list[Metric]] = defaultdict(list)  # run id -> metrics to upload
        self.known: dict[tuple[str, str], set[tuple[int, float]]] = {}  # (run id, metric) -> points that the store has
        self.resumed = False  # the run existed before
        self.held: dict[str, set[str]] = {}  # run id -> metrics that had points then
        self.link: dict[str, str] | None = None  # see `_evaluated`
        self.evaluates = False  # the stage is evaluate, not train
        self.overtaken = False  # this stage's part of the run was already completed, by this journal or a later one
        self.ended = False

    def advance(self) -> None:
        """Upload the events that were written since the last call.

        The rest of a journal, which may contain a million points, is not read before its run exists in the store.
        """
        if not self.run_id:
            if (begin := self.journal.begin()) is None:
                return  # not yet, or the stage ended before its run began
            self._begin(begin)
        events, offset = self.journal.read(self.offset)
        for event in events:
            if event["do"] == "begin":
                continue
            if self.overtaken and self.evaluates and event["do"] != "end":
                continue
            if not event.get("restored") or self.made_here:
                getattr(self, f"_{event['do']}")(event)
        self._flush()
        self.offset = offset

    def _begin(self, event: Event) -> None:
        if (number := event.get("format", 1)) > FORMAT:
            raise UserError(f"it {newer_format(number, FORMAT)}")
        _check_order(self.journal, event)
        self.experiment = open_store(event["experiment"])
        self.client = mlflow.MlflowClient()
        event["tags"] = upgraded_tags(event["tags"])
        found = self._find(event)
        self.resumed = found is not None
        if found is None:
            tags = event["tags"] | {
                KEY_TAG: event["key"],
                USER_TAG: event["user"],
                SOURCE_NAME_TAG: f"stages/{event['stage']}.py",
                SOURCE_TYPE_TAG: "LOCAL",
            }
            found = self.client.create_run(self.experiment, event["time"], tags, event["name"])
            self.client.set_tag(found.info.run_id, NAME_TAG, found.info.run_name)
        elif found.info.status == "FINISHED" and (event["stage"] == "train" or _is_evaluated(found)):
            self.overtaken = True
        elif found.info.status != "RUNNING":
            self.client.update_run(found.info.run_id, status="RUNNING")
        self.run = found
        self.run_id, self.name = found.info.run_id, found.info.run_name
        self.params = event["params"]
        self.evaluates = event["stage"] == "evaluate"
        self.made_here = upgraded_tags(found.data.tags).get(KEY_TAG) == event["key"]
        self._log_params(self.run_id, self.params if self.made_here else {})
        if self.made_here and self.resumed and not self.overtaken:
            self._move(event["tags"])
        if not self.resumed:
            self._describe()
        if self.evaluates and not self.overtaken:
            self.client.set_tag(self.run_id, EVALUATION_TAG, event["key"])
        nested = self._search(PARENT_TAG, self.run_id) if self.resumed else []
        seeds = {run.info.run_id: upgraded_tags(run.data.tags).get(SEED_TAG) for run in nested}
        self.seeds = {int(seed): run_id for run_id, seed in seeds.items() if seed is not None}
        self.held = {run.info.run_id: set(run.data.metrics) for run in (found, *nested)}

    def _move(self, tags: dict[str, str]) -> None:
        """Move a resumed run to the experiment and the sweep of the process that finishes it, or out of them."""
        for name in (EXPERIMENT_TAG, BASELINE_TAG, PARENT_TAG):
            if name in tags:
                self.client.set_tag(self.run_id, name, tags[name])
            elif name in self.run.data.tags:
                self.client.delete_tag(self.run_id, name)

    def _find(self, event: Event) -> MlflowRun | None:
        """The run that this journal created before, or the newest one whose weights are not yet evaluated.

        For `classifier record`, also a run that already has these outputs: it may just have been created.
        """
        key = event["key"]
        for tag in (KEY_TAG, EVALUATION_TAG):
            if runs := self._search(tag, key):
                return runs[0]
        if event["weights"]:
            for run in self._search(WEIGHTS_TAG, event["weights"]):
                tags = upgraded_tags(run.data.tags)
                names = (EXPERIMENT_TAG, PARENT_TAG)  # sweeps of several people have experiments with the same names
                same_experiment = all(tags.get(name) == event["tags"].get(name) for name in names)
                same_params = upgraded(run.data.params) == upgraded(event["params"])
                awaits = same_experiment and EVALUATED_TAG not in tags
                has_them = bool(event.get("outputs")) and holds(run, event["outputs"])
                if same_params and (awaits or has_them):
                    return run
        return None

    def _search(self, tag: str, value: str) -> list[MlflowRun]:
        return runs_with_tag(self.experiment, tag, value)

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        values = [Param(name, value) for name, value in params.items()]
        for start in range(0, len(values), 100):  # MLflow's limit per request
            self.client.log_batch(run_id, params=values[start : start + 100])

    def _metrics(self, event: Event) -> None:
        run_id = self.run_id if event["seed"] is None else self._nested(event["seed"], event["time"])
        for name, value in event["values"].items():
            point = event["step"], float(value)
            if point not in self._known(run_id, name):
                self._known(run_id, name).add(point)
                link = self._evaluated() if run_id == self.run_id and name.startswith("test/") else {}
                self.waiting[run_id].append(Metric(name, value, event["time"], event["step"], **link))
        if len(self.waiting[run_id]) >= 1000:
            self._flush()

    def _evaluated(self) -> dict[str, str]:
        """The run's model and data set, to which test metrics are linked."""
        if self.link is None:
            query = f"source_run_id = '{self.run_id}'"
            models = list(self.client.search_logged_models([self.experiment], query, max_results=1))
            inputs = self.client.get_run(self.run_id).inputs
            data = [each.dataset for each in inputs.dataset_inputs[:1]] if inputs else []
            self.link = {"model_id": models[0].model_id} if models else {}
            self.link |= {"dataset_name": data[0].name, "dataset_digest": data[0].digest} if data and models else {}
        return self.link

    def _known(self, run_id: str, name: str) -> set[tuple[int, float]]:
        """Step and value of the metric's points in the store; queried once, and only if there are any."""
        if (run_id, name) not in self.known:
            held = name in self.held.get(run_id, ())
            points = self.client.get_metric_history(run_id, name) if held else []
            self.known[run_id, name] = {(point.step, point.value) for point in points}
        return self.known[run_id, name]

    def _nested(self, seed: int, time_ms: int) -> str:
        """The nested run of a seed."""
        if seed not in self.seeds:
            tags = {
                PARENT_TAG: self.run_id,
                USER_TAG: self.run.info.user_id,
                SEED_TAG: str(seed),
                KEY_TAG: f"{self.run_id}-{seed}",
            }
            name = f"{self.run.info.run_name.split()[-1]}/seed-{seed}"
            child = self.client.create_run(self.experiment, time_ms, tags, name)
            self.seeds[seed] = child.info.run_id
        if seed not in self.described:
            self._log_params(self.seeds[seed], self.params | {"train.seed": str(seed), "train.seeds": "1"})
            self.described.add(seed)
        return self.seeds[seed]

    def _flush(self) -> None:
        """Log the waiting metrics in batches of 1,000, MLflow's limit; a call per metric would take 4 to 50 ms each."""
        for run_id, metrics in self.waiting.items():
            while metrics:
                self.client.log_batch(run_id, metrics=metrics[:1000])
                del metrics[:1000]

    def _tags(self, event: Event) -> None:
        tags = upgraded_tags(event["tags"])
        self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def _data(self, event: Event) -> None:
        dataset = Dataset(event["name"], event["digest"], "http", event["source"], profile=event["profile"])
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _files(self, event: Event) -> None:
        self.client.log_artifacts(self.run_id, str(self.journal.folder / "files" / event["path"]), event["path"])

    def _model(self, event: Event) -> None:
        log_model(self.client, self.experiment, self.run_id, event, self.journal.folder, self.params)

    def _end(self, event: Event) -> None:
        self._flush()
        self.ended = True
        if self.overtaken:
            return
        if event["error"]:
            self.client.set_tag(self.run_id, ERROR_TAG, event["error"])
        elif ERROR_TAG in self.run.data.tags:  # of an earlier attempt
            self.client.delete_tag(self.run_id, ERROR_TAG)
        self._describe()
        for run_id in (*self.seeds.values(), self.run_id):
            self.client.set_terminated(run_id, event["status"], event["time"])

    def _describe(self) -> None:
        """Set the run's name, unless someone has renamed it, and its description."""
        run = self.client.get_run(self.run_id)
        self.name, last = run.info.run_name, upgraded_tags(run.data.tags).get(NAME_TAG)
        if last and (self.name == last or (self.name.startswith(subject_of(run)) and self.name.endswith(last))):
            self.name = f"{title_of(run)} {last}"
            self.client.update_run(self.run_id, name=self.name)
        self.client.set_tag(self.run_id, NOTE_TAG, description_of(run))


def _is_evaluated(run: MlflowRun) -> bool:
    return EVALUATED_TAG in upgraded_tags(run.data.tags)


def holds(run: MlflowRun, outputs: Outputs) -> bool:
    """Whether an evaluated run has the tags and the test metrics of these outputs."""
    tags, metrics = {EVALUATED_TAG: "true", **outputs["tags"]}, test_metrics(outputs["metrics"])
    return tags.items() <= upgraded_tags(run.data.tags).items() and metrics.items() <= run.data.metrics.items()


def deliver_waiting(moved_from: str = "") -> tuple[list[str], list[str]]:
    """Upload all journals of this store whose stage has ended. Returns a line per uploaded and per failed journal.

    Runs of killed stages end as KILLED. A journal that cannot be uploaded does not block other runs. `moved_from`:
    also upload journals for the store that had this address. Raises StoreError if the store cannot be used.
    """
    with delivering():
        delivered, left = _deliver_older(None, moved_from)
    return delivered, [f"{journal.folder}: {reason}" for journal, reason in left]


def deliver(journal: Journal) -> str:
    """Upload a complete journal after older ones and remove it. Returns its run's id, empty if it has no run."""
    with delivering():
        return close(_advance(journal, None))


def advance(journal: Journal, delivery: Delivery | None) -> Delivery:
    """Upload older journals, then the events written since the last call. Returns `delivery`, new if None."""
    with delivering():
        return _advance(journal, delivery)


def finish(journal: Journal, delivery: Delivery | None) -> Delivery | None:
    """Upload the rest of a journal whose stage has ended, and remove it."""
    with delivering():
        if not journal.folder.exists():
            return None  # the stage was killed, and another process has uploaded the journal
        if (handle := claim(journal.folder)) is not None:  # None if another process has started to
            journal, delivery = Journal(journal.folder, handle), None
        try:
            delivery = _advance(journal, delivery)
            close(delivery)
            return delivery
        finally:
            journal.release()


def _advance(journal: Journal, delivery: Delivery | None) -> Delivery:
    if delivery is None:
        _deliver_older(journal)
        delivery = Delivery(journal)
    delivery.advance()
    return delivery


def _deliver_older(than: Journal | None, moved_from: str = "") -> tuple[list[str], list[tuple[Journal, str]]]:
    """Like `deliver_waiting`, for journals older than `than`, or all if it is None."""
    delivered, left = [], []
    for waiting in waiting_journals():
        if than and waiting.folder.name >= than.folder.name:
            break
        begin = waiting.begin()
        if begin and not is_known_store(begin["store"]) and begin["store"].rstrip("/") != moved_from.rstrip("/"):
            here = shlex.quote(begin["store"])
            reason = f"its store is {begin['store']}; to record it in the one in use: classifier sync --from {here}"
            left.append((waiting, reason))
        elif (handle := claim(waiting.folder)) is None:
            left.append((waiting, "its stage still runs"))
        else:
            journal = Journal(waiting.folder, handle)
            delivery = Delivery(journal)
            try:
                delivery.advance()
                if run_id := close(delivery):
                    delivered.append(f"{begin['stage'] if begin else 'a stage'}, run {run_id}")
            except StoreError:
                raise
            except Exception as error:  # MLflow and the clients of databases and artifact stores raise many types
                left.append((waiting, explained(error)))
            finally:
                journal.release()
    return delivered, left


def close(delivery: Delivery) -> str:
    """Remove the journal and return its run's id. If the stage was killed, the missing event `end` is added first."""
    if delivery.run_id and not delivery.ended:
        error = "the process exited without reporting (killed, or out of memory)"
        delivery.journal.append("end", status="KILLED", error=error)
        delivery.advance()
    delivery.journal.remove()
    return delivery.run_id


def _check_order(journal: Journal, begin: Event) -> None:
    """Raise OSError if an older journal of the same run is not yet uploaded, because events must arrive in order.

    Journals belong to the same run if they have the same key, or if one is the training of the weights that the other
    evaluates. Journals for another store belong to another run.
    """
    for earlier in waiting_journals():
        if earlier.folder.name >= journal.folder.name:
            return
        other = earlier.begin()
        if other is None or other["store"] != begin["store"]:
            continue
        if other["key"] == begin["key"] or (begin["weights"] and begin["weights"] in _weights_of(earlier)):
            raise OSError(f"{earlier.folder}, of the same run, goes first: classifier sync")


def _weights_of(journal: Journal) -> set[str]:
    """Hash of the weights that a training wrote. Searches the text, because a journal may contain a million points."""
    names = [name for name, today in RENAMED.items() if today == WEIGHTS_TAG] + [WEIGHTS_TAG]
    tag = rf'"(?:{"|".join(map(re.escape, names))})": "(\w+)"'.encode()
    return {found.decode() for found in re.findall(tag, journal.events.read_bytes())}
