"""Evaluate the trained model on the test split, which no other stage reads.

    python -m stages.evaluate params.yaml data/normalized models/classifier reports/train reports/evaluate

Reads: params.yaml, section `evaluate`; the test split; the model; the training history, to restore a run that is
missing in MLflow.
Writes: the last folder (`classifier.evaluation.report` lists its files), and completes the run in MLflow.
"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from classifier.arithmetic import use
from classifier.errors import UserError
from classifier.params import Params, load_params
from classifier.project.cli import paths, run_stage
from classifier.recording.run import Recording, recording


def main(arguments: list[str]) -> None:
    params_path, data, model, training, reports = paths(arguments, "params", "data", "model", "training", "reports")
    params = load_params(params_path)
    use(params.evaluate.arithmetic)
    with recording("evaluate", params) as record:
        line = evaluate(params, data, model, training, reports, record)
    print(line)


def evaluate(params: Params, data: Path, model: Path, training: Path, reports: Path, record: Recording) -> str:
    """Run the stage, recording into `record`, and return a one-line summary."""
    # Imported here, so that this process imports torch while the recorder's imports mlflow: 2 s each.
    import pandas as pd
    import torch

    from classifier.data.dataset import read_meta, read_split
    from classifier.device import be_deterministic, pick_device, set_precision
    from classifier.evaluation.metrics import Predictions
    from classifier.evaluation.report import write_evaluation
    from classifier.networks.inference import predict, predict_in_parts
    from classifier.networks.model import Classifier
    from classifier.networks.model_dir import read_model, read_model_meta, read_models
    from classifier.recording.run import restore_training
    from classifier.training.history import read_history
    from classifier.training.report import verify_training

    data_meta, model_meta = read_meta(data), read_model_meta(model)
    verify_training(training)
    if data_meta.name != model_meta.dataset:
        raise UserError(f"{model} was trained on {model_meta.dataset}, {data} holds {data_meta.name}: run dvc repro")
    device = pick_device(params.evaluate.device, "evaluate.device")
    set_precision("float32", device)
    be_deterministic(device)
    # No environment: if this creates the run, it would be recorded as the training's.
    record.begin(uuid4().hex, {}, model_meta.weights_sha256)
    restore_training(record, data, data_meta, model, model_meta, training)
    test = read_split(data, "test", data_meta)
    images = torch.from_numpy(test.images).to(device)

    def predictions_of(classifier: Classifier) -> Predictions:
        if device.type == "cpu" and params.evaluate.arithmetic == "portable":
            logits = predict_in_parts(classifier, images, params.evaluate.batch_size, len(model_meta.class_names))
        else:
            logits = predict(classifier.to(device), images, params.evaluate.batch_size)
        return Predictions(test.labels, logits.cpu().double().log_softmax(1).numpy(), model_meta.class_names)

    predictions = predictions_of(read_model(model))
    seeds = {seed: predictions_of(classifier) for seed, classifier in read_models(model).items()}
    history = pd.DataFrame(read_history(training / "history.csv"))
    metrics, of_seeds = write_evaluation(reports, test.images, predictions, seeds, history, params.evaluate)
    line = summary(data_meta.name, metrics)
    record.log.append(line)
    record.log_evaluation(metrics, of_seeds, reports, model)
    return line


def summary(dataset: str, metrics: dict[str, float | int]) -> str:
    """Format accuracy, its interval and the number of images."""
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    return f"{dataset}: accuracy {metrics['accuracy']:.2%} ({low:.2%} to {high:.2%}, {metrics['n']} images)"


if __name__ == "__main__":
    run_stage(main)
