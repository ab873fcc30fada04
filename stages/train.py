"""Train LeNet-5 on the normalized images, one seed or several.

    python -m stages.train params.yaml data/normalized models/classifier reports/train

Reads: params.yaml, section `train`; the train and validation splits (the test split is for evaluate alone).
Writes: the model directory (`classifier.model_dir`) and the report (`classifier.training_report`), then the MLflow run.
Why: the same params, data and machine give the same bytes, and the run says which they were.
"""

from __future__ import annotations

from classifier import tracking
from classifier.cli import paths, run
from classifier.console import Console
from classifier.dataset import read_meta
from classifier.device import be_deterministic, describe, pick_device, set_precision
from classifier.history import Row
from classifier.model import parameter_count
from classifier.model_dir import build, write_model
from classifier.params import load_params
from classifier.replicas import median_seed, train_replicas
from classifier.training import steps_per_epoch
from classifier.training_report import write_training


def main(arguments: list[str]) -> None:
    params_path, data, model, reports = paths(arguments, "params", "data", "model", "reports")
    params = load_params(params_path)
    device = pick_device(params.train.device)
    set_precision(params.train.precision, device)
    be_deterministic(device)
    meta = read_meta(data)
    with tracking.training_run(params) as record:
        record.log_data(data, meta)
        images, size = sum(meta.counts["train"]), parameter_count(build(meta))
        steps = steps_per_epoch(images, params.train)
        with Console(params.train, steps, record.log) as console:
            console.say(f"{meta.name}: {images} images, {size} parameters, {describe(device)}")

            def report(seed: int, row: Row) -> None:
                console.show(seed, row)
                record.of_seed(seed).log_row(row)

            replicas = train_replicas(data, params.train, device, report)

        chosen = median_seed(replicas)
        histories = {seed: replica.rows for seed, replica in replicas.items()}
        classifiers = {seed: replica.classifier for seed, replica in replicas.items()}
        model_meta = write_model(model, classifiers, chosen, meta)
        write_training(reports, histories, chosen, size)
        record.log_training(model, model_meta, reports, histories)


if __name__ == "__main__":
    run(main)
