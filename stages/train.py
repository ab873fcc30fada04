"""Train LeNet-5 on the normalized images.

Reads the train and validation splits of DATA; the test split is for evaluate alone.
Writes MODEL (weights.safetensors, meta.json) and REPORTS (history.csv, metrics.json), the same bytes for the same
params, data and machine, and records the run in MLflow.
"""

from classifier import tracking
from classifier.cli import paths, run
from classifier.console import Console
from classifier.dataset import read_meta, read_split
from classifier.device import be_deterministic, describe, pick_device
from classifier.files import write_json
from classifier.history import Row, write_history
from classifier.model import parameter_count
from classifier.model_dir import build, write_model
from classifier.params import load_params
from classifier.training import fit, steps_per_epoch


def main(arguments: list[str]) -> None:
    params_file, data, model, reports = paths(arguments, "params", "data", "model", "reports")
    params = load_params(params_file)
    device = pick_device(params.train.device)
    be_deterministic(device)
    with tracking.training_run(params) as record:
        meta = read_meta(data)
        record.log_data(data, meta)
        train, validation = read_split(data, "train", meta), read_split(data, "validation", meta)
        classifier = build(meta, params.train.seed)
        rows: list[Row] = []

        steps = steps_per_epoch(len(train), params.train)
        with Console(params.train.epochs, steps, keep=record.log_console) as console:
            size = parameter_count(classifier)
            console.say(f"{meta.name}: {len(train)} images, {size} parameters, {describe(device)}")

            def report(row: Row) -> None:
                rows.append(row)
                console.show(row)
                record.log_row(row)

            fit(classifier, train, validation, params.train, device, report)

        model_meta = write_model(model, classifier, meta)
        write_history(reports / "history.csv", rows)
        write_json(reports / "metrics.json", summary(rows, size))
        record.log_training(model, model_meta, reports)


def summary(rows: list[Row], parameters: int) -> dict[str, int | float | None]:
    """metrics.json: the end of training, without times, which would differ from run to run."""
    last = rows[-1]
    return {
        "steps": last.step,
        "images": last.images,
        "parameters": parameters,
        "running_loss": next(row.running_loss for row in reversed(rows) if row.running_loss is not None),
        "train_loss": last.train_loss,
        "validation_loss": last.validation_loss,
        "validation_accuracy": last.validation_accuracy,
    }


if __name__ == "__main__":
    run(main)
