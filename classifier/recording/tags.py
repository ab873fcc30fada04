"""The names of a run's tags, for all code that writes or reads them.

Tags that people search by are shown in MLflow. The others begin with `HIDDEN`, because MLflow's pages do not show tags
that begin with `mlflow.`. Runs, versions and journals of earlier versions of this project have the names in `RENAMED`:
`upgraded_tags` converts them, `tag_queries` searches by both names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

HIDDEN = "mlflow.classifier."

# Which run it is
KEY_TAG = f"{HIDDEN}key"  # of the journal that made the run
EVALUATION_TAG = f"{HIDDEN}evaluation_key"  # of the journal that evaluates it
NAME_TAG = f"{HIDDEN}name"  # the last word of its name, which does not change
EXPERIMENT_TAG = "dvc.exp.name"  # the DVC experiment
BASELINE_TAG = f"{HIDDEN}dvc_exp_baseline"  # the commit that it started from
PARENT_TAG = "mlflow.parentRunId"  # of a seed's nested run, and of a run of a sweep
SEED_TAG = f"{HIDDEN}seed"  # of a seed's nested run
CHOSEN_TAG = f"{HIDDEN}chosen_seed"  # of a run of several seeds: the one whose model and predictions it has
SWEEP_ID_TAG = f"{HIDDEN}sweep_id"
SWEEP_KEY_TAG = f"{HIDDEN}sweep_key"
SWEEP_COMMAND_TAG = "sweep.command"
# Who made it, from which code, where
USER_TAG = "mlflow.user"
SOURCE_NAME_TAG = "mlflow.source.name"
SOURCE_TYPE_TAG = "mlflow.source.type"
NOTE_TAG = "mlflow.note.content"  # the description, Markdown
COMMIT_TAG = "git.commit"
DIRTY_TAG = "git.dirty"  # "true" or "false": whether there were uncommitted changes; absent if unknown
CODE_TAG = f"{HIDDEN}code"  # the hash of the code, uncommitted changes included
PROBLEM_TAG = "git.problem"  # why the code is not recorded, or not completely
ENVIRONMENT = f"{HIDDEN}env."  # and a name: versions, device, threads
# What it read and made
DATA_TAG = "dvc.data"  # DVC's hash
TEST_TAG = f"{HIDDEN}test_sha256"  # of the test split
WEIGHTS_TAG = f"{HIDDEN}weights_sha256"
MODEL_TAG = "dvc.model"  # DVC's hash
RESTORED_TAG = f"{HIDDEN}restored"  # "true": the training was recorded afterwards, from its outputs
EVALUATED_TAG = f"{HIDDEN}evaluated"  # "true": the run is complete
ERROR_TAG = "error"

RENAMED = {  # earlier name or prefix -> current name
    "run.key": KEY_TAG,
    "evaluation.key": EVALUATION_TAG,
    "dvc.exp.baseline": BASELINE_TAG,
    "replica.seed": SEED_TAG,
    "replicas.chosen_seed": CHOSEN_TAG,
    "sweep.id": SWEEP_ID_TAG,
    "sweep.key": SWEEP_KEY_TAG,
    "git.code": CODE_TAG,
    "env.": ENVIRONMENT,
    "data.test_sha256": TEST_TAG,
    "model.weights_sha256": WEIGHTS_TAG,
    "train.restored": RESTORED_TAG,
    "evaluated": EVALUATED_TAG,
}


def upgraded_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a run, a version or a journal under their current names."""
    return {_today(name): value for name, value in tags.items()}


def _today(name: str) -> str:
    return ENVIRONMENT + name.removeprefix("env.") if name.startswith("env.") else RENAMED.get(name, name)


def tag_queries(tag: str, value: str) -> list[str]:
    """Filters for MLflow's searches, one per current or earlier name of a tag, because they do not support OR."""
    names = [tag, *(earlier for earlier, today in RENAMED.items() if today == tag)]
    return [f"tags.`{name}` = '{value}'" for name in names]


def experiment_tags() -> dict[str, str]:
    """Name and baseline of the DVC experiment; empty in a plain `dvc repro`."""
    names = {EXPERIMENT_TAG: "DVC_EXP_NAME", BASELINE_TAG: "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}
