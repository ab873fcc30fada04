#!/usr/bin/env bash
# Makes golden.tar.xz beside this file with the code of commit 31cce96; README.md says what is in it.
# Run it in the activated environment of that commit: tests/data/31cce96/make.sh, some five minutes on two cores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repository=$(git -C "$here" rev-parse --show-toplevel)
project=/tmp/classifier-31cce96 # a fixed name: MLflow's store holds it
[ ! -e "$project" ] || { echo "$project exists: remove it first"; exit 1; }

git clone --quiet "$repository" "$project"
cd "$project"
git checkout --quiet -B start 31cce96
restore() { git checkout --quiet params.yaml dvc.lock && dvc checkout --quiet; }
newest() { python -c 'from classifier.runs import all_runs; print(all_runs().index[0])'; }

# 1. The default run, promoted to champion.
dvc repro --quiet
python -m commands.promote "$(newest)"

# 2. Other params, as DVC's experiment; the next champion, by a lower limit.
dvc exp run --quiet --name other -S train.learning_rate=0.02 -S train.epochs=4
restore
sed -i 's/min_accuracy_low: 0.95/min_accuracy_low: 0.9/' params.yaml
python -m commands.promote "$(newest)"
restore

# 3. Three seeds.
dvc exp run --quiet --name seeds -S train.replicas=3 -S train.epochs=2
restore

# 4. A sweep of two.
python -m commands.sweep train.learning_rate=0.01,0.05 train.epochs=2 --jobs 1

# 5. Journals that wait: the store is away, a pipeline is run, and a training is killed after a checkpoint.
mv mlflow.db away.db && mkdir mlflow.db
train() { sed -i "/^train:/,/^evaluate:/s/^  $1: [^ ]*/  $1: $2/" params.yaml; }
train seed 7 && train epochs 1
dvc repro --quiet
restore
train epochs 1000 && train checkpoint_every 30
train momentum 0.0 && train nesterov false # a momentum of zeros is a smaller file
python -m stages.train params.yaml data/normalized "$project-model" "$project-reports" > /dev/null &
until compgen -G '.pipeline/checkpoints/*/seed-0/*.safetensors' > /dev/null; do sleep 0.1; done
kill -9 $!
wait $! || true
sleep 5 # until its recorder is gone
rmdir mlflow.db && mv away.db mlflow.db
restore

# Left out, being large and read by no test: the models of 3. and 4., all pictures but those of 1., what DVC's cache
# holds beside the outputs of 1., and all but the newest checkpoint.
python - <<'PYTHON'
import json
import shutil
import sqlite3
from pathlib import Path

from ruamel.yaml import YAML

MODELS = """
SELECT artifact_location FROM logged_models JOIN tags ON run_uuid = source_run_id
WHERE key = 'dvc.exp.name' AND value != 'other'
"""
FIRST = "SELECT artifact_uri FROM runs JOIN model_versions ON run_uuid = run_id WHERE version = 1"
with sqlite3.connect("mlflow.db") as store:
    for (address,) in store.execute(MODELS):
        shutil.rmtree(address.removeprefix("file://"))
    ((first,),) = store.execute(FIRST)
for picture in [*Path("mlartifacts").resolve().rglob("*.png"), *Path(".pipeline/journal").rglob("*.png")]:
    if not picture.is_relative_to(first.removeprefix("file://")):
        picture.unlink()
for older in sorted(Path(".pipeline/checkpoints").rglob("*.safetensors"))[:-1]:
    older.unlink()
objects, kept = Path(".dvc/cache/files/md5"), set()
for stage in YAML(typ="safe").load(Path("dvc.lock"))["stages"].values():
    for digest in [out["md5"] for out in stage["outs"]]:
        kept |= {digest, *(entry["md5"] for entry in json.loads((objects / digest[:2] / digest[2:]).read_bytes()))}
for path in objects.glob("*/*"):
    if path.parent.name + path.name not in kept:
        path.unlink()
PYTHON
find .dvc/cache .pipeline mlartifacts -type d -empty -delete
tar --sort=name --owner=0 --group=0 --numeric-owner -cf - \
    mlflow.db mlartifacts dvc.lock params.yaml data models reports .dvc/cache .pipeline |
    xz -9e > "$here/golden.tar.xz"
ls -l "$here/golden.tar.xz"
