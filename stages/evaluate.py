"""Evaluate the trained model on the test split, which no other stage uses.

    python -m stages.evaluate params.yaml data/normalized models/classifier reports/train reports/evaluate

Reads: params.yaml, section `evaluate`; the test split; the validation split, to fit a temperature; the model; the
training history, for the report and to restore a run that is missing in MLflow.
Writes: the last folder (`classifier.evaluation.report` lists its files), and completes the run in MLflow.
"""

from __future__ import annotations

import json
from pathlib import Path

from classifier.arithmetic import use
from classifier.errors import UserError
from classifier.params import Params, load_params
from classifier.project.cli import paths, run_stage
from classifier.project.files import sha256, sha256_of
from classifier.project.lineage import project_root
from classifier.project.resuming import own_code, resumable_run
from classifier.recording.run import Recording, recording

EVALUATIONS = Path(".pipeline/evaluations")  # in the project's root


def main(arguments: list[str]) -> None:
    params_path, data, model, training, reports = paths(arguments, "params", "data", "model", "training", "reports")
    params = load_params(params_path)
    use(params.evaluate.arithmetic)
    with recording("evaluate", params) as record:
        line = evaluate(params, data, model, training, reports, record)
    print("\n".join([line, *record.run_lines()]))


def evaluate(params: Params, data: Path, model: Path, training: Path, reports: Path, record: Recording) -> str:
    """Run the stage, recording into `record`, and return a one-line summary."""
    # Imported here, so that this process imports torch while the recorder's imports mlflow: 2 s each.
    import pandas as pd
    import torch

    from classifier.data.dataset import Sample, read_meta, read_paths, read_split
    from classifier.device import be_deterministic, pick_device, set_precision
    from classifier.evaluation.inference import Inference
    from classifier.evaluation.report import Evaluation, write_evaluation
    from classifier.evaluation.robustness import IMAGES, conditions
    from classifier.networks.model_dir import read_model, read_model_meta, read_models
    from classifier.recording.run import restore_training
    from classifier.training.history import read_history
    from classifier.training.report import read_costs, read_histories, read_layers, verify_training

    data_meta, model_meta = read_meta(data), read_model_meta(model)
    verify_training(training)
    if data_meta.name != model_meta.dataset:
        raise UserError(f"{model} was trained on {model_meta.dataset}, {data} holds {data_meta.name}: run dvc repro")
    device = pick_device(params.evaluate.device, "evaluate.device")
    set_precision("float32", device)
    be_deterministic(device, strictly=False)  # training has refused a network without deterministic kernels
    what = [model_meta.weights_sha256, sha256_of(data / "meta.json"), params.digest, own_code()]
    work = resumable_run(project_root() / EVALUATIONS, sha256(json.dumps(what).encode())[:16])
    _, key = record.recorded.enter_context(work)
    # No environment: if this creates the run, it would be recorded as the training's.
    record.begin(key, {}, model_meta.weights_sha256)
    restore_training(record, data, data_meta, model, model_meta, training)
    test, validation = (read_split(data, name, data_meta) for name in ("test", "validation"))
    print(f"{params.download.name}: {len(test):,} test images, {model_meta.architecture}, {device.type}", flush=True)
    portable = device.type == "cpu" and params.evaluate.arithmetic == "portable"
    inference = Inference(device, params.evaluate.batch_size, torch.get_num_threads() if portable else 0)
    classifier, names = read_model(model), model_meta.class_names
    predictions = inference.predictions(classifier, test, names)
    several = {seed: each for seed, each in read_models(model).items() if seed != model_meta.seed}
    seeds = {seed: inference.predictions(each, test, names) for seed, each in several.items()}
    histories = read_histories(training, [int(seed) for seed in model_meta.replicas])
    histories = histories or {model_meta.seed: read_history(training / "history.csv")}
    evaluation = Evaluation(
        data=data_meta,
        model=model_meta,
        dataset=params.download.name,
        costs=read_costs(training),
        layers=read_layers(training),
        histories={seed: pd.DataFrame(rows) for seed, rows in histories.items()},
        test=test,
        paths=read_paths(data, "test", data_meta),
        predictions=predictions,
        validation=inference.predictions(classifier, validation, names) if len(validation) else None,
        right=inference.right(classifier, Sample(test, IMAGES), conditions(params.evaluate.corruptions)),
        seeds=dict(sorted((seeds | {model_meta.seed: predictions}).items())) if seeds else {},
    )
    metrics, of_seeds = write_evaluation(reports, evaluation, params.evaluate)
    line = summary(params.download.name, metrics, len(test))
    record.log.append(line)
    record.log_evaluation(metrics, of_seeds, reports, model)
    return line


def summary(dataset: str, metrics: dict[str, float], images: int) -> str:
    """Format accuracy, its interval and the number of images; of several seeds their mean comes first."""
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    line = f"accuracy {metrics['accuracy']:.2%} ({low:.2%} to {high:.2%}, {images} images)"
    if "accuracy_mean" not in metrics:
        return f"{dataset}: {line}"
    mean, low, high = (metrics[f"accuracy_mean{end}"] for end in ("", "_low", "_high"))
    return f"{dataset}: mean accuracy of all seeds {mean:.2%} ({low:.2%} to {high:.2%})\nthe model's seed: {line}"


if __name__ == "__main__":
    run_stage(main)
