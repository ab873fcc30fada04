"""The names of a run's tags: whoever writes or reads a tag takes its name from here.

Stored runs have these names, so they do not change.
"""

from __future__ import annotations

import os

# Which run it is
KEY_TAG = "run.key"  # of the journal that made the run
EVALUATION_TAG = "evaluation.key"  # of the journal that evaluates it
EXPERIMENT_TAG = "dvc.exp.name"  # the DVC experiment
BASELINE_TAG = "dvc.exp.baseline"  # the commit that it started from
PARENT_TAG = "mlflow.parentRunId"  # of a seed's nested run, and of a run of a sweep
SEED_TAG = "replica.seed"  # of a seed's nested run
CHOSEN_TAG = "replicas.chosen_seed"  # of a run of several seeds: the one whose model and predictions it has
SWEEP_ID_TAG = "sweep.id"
SWEEP_KEY_TAG = "sweep.key"
SWEEP_COMMAND_TAG = "sweep.command"
# Who made it, from which code, where
USER_TAG = "mlflow.user"
SOURCE_NAME_TAG = "mlflow.source.name"
SOURCE_TYPE_TAG = "mlflow.source.type"
COMMIT_TAG = "git.commit"
DIRTY_TAG = "git.dirty"  # "true" or "false": whether there were uncommitted changes; absent if unknown
CODE_TAG = "git.code"  # the hash of the code, uncommitted changes included
PROBLEM_TAG = "git.problem"  # why the code is not recorded, or not completely
ENVIRONMENT = "env."  # and a name: versions, device, threads
# What it read and made
DATA_TAG = "dvc.data"  # DVC's hash
TEST_TAG = "data.test_sha256"  # of the test split
WEIGHTS_TAG = "model.weights_sha256"
MODEL_TAG = "dvc.model"  # DVC's hash
RESTORED_TAG = "train.restored"  # "true": the training was recorded afterwards, from its outputs
EVALUATED_TAG = "evaluated"  # "true": the run is complete
ERROR_TAG = "error"


def experiment_tags() -> dict[str, str]:
    """Name and baseline of the DVC experiment; empty in a plain `dvc repro`."""
    names = {EXPERIMENT_TAG: "DVC_EXP_NAME", BASELINE_TAG: "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}
