"""Train a network on the normalized images, one seed or several.

    python -m stages.train params.yaml data/normalized models/classifier reports/train

Reads: params.yaml, section `train`; the train and validation splits (only evaluate reads the test split).
Writes: the model directory (`classifier.networks.model_dir`), the report (`classifier.training.report`) and the run.
Why: the same params, data, code and libraries give the same bytes, on every x86-64 machine in portable arithmetic.
An interrupted training resumes from its last checkpoint (`classifier.training.checkpoint`).
"""

from __future__ import annotations

from pathlib import Path

from classifier.arithmetic import use
from classifier.data.dataset import DatasetMeta, read_meta
from classifier.params import Params, load_params
from classifier.project.cli import paths, run_stage
from classifier.recording.run import Recording, recording


def main(arguments: list[str]) -> None:
    params_path, data, model, reports = paths(arguments, "params", "data", "model", "reports")
    params, meta = load_params(params_path), read_meta(data)
    use(params.train.arithmetic)
    with recording("train", params) as record:
        train(params, data, meta, model, reports, record)


def train(params: Params, data: Path, meta: DatasetMeta, model: Path, reports: Path, record: Recording) -> None:
    """Run the stage, recording into `record`."""
    # Imported here, so that this process imports torch while the recorder's imports mlflow: 2 s each.
    from classifier.device import be_deterministic, describe, environment, keep_freed_memory, pick_device, set_precision
    from classifier.networks.model import parameter_count
    from classifier.networks.model_dir import write_model
    from classifier.networks.registry import build, specify
    from classifier.project.files import replacing
    from classifier.training.checkpoint import checkpointed, fingerprint_of
    from classifier.training.console import Console
    from classifier.training.history import Row
    from classifier.training.loop import train_one
    from classifier.training.parts import computation_of
    from classifier.training.report import write_training
    from classifier.training.seeds import median_seed, seconds_of, train_seeds
    from classifier.training.steps import steps_per_epoch

    device = pick_device(params.train.device, "train.device")
    set_precision(params.train.precision, device)
    be_deterministic(device)
    keep_freed_memory()
    spec = specify(meta, params.train.network)
    images, size = sum(meta.counts["train"]), parameter_count(build(spec))
    computation, machine = computation_of(params.train, device), environment(device)
    fingerprint = fingerprint_of(params.train, data, computation.decisive(machine), Path(__file__))
    with checkpointed(fingerprint, params.train.checkpoint_every) as work:
        record.begin(work.run_key(params), machine | computation.recorded())
        record.log_data(data, meta)
        with Console(params.train, steps_per_epoch(images, params.train), record.log) as console:
            record.settle()
            network = f"{spec.architecture}, {size} parameters"
            console.say(f"{meta.name}: {images} images, {network}, {describe(device)}, {computation}")

            def report(seed: int, row: Row) -> None:
                console.show(seed, row)
                record.log_row(seed, row, row.seconds)

            if params.train.seeds == 1:
                seed = params.train.seed
                trained = {seed: train_one(data, seed, params.train, device, report, work)}
            else:
                trained = train_seeds(data, params.train, device, report, work)

        chosen = median_seed(trained)
        histories = {seed: each.rows for seed, each in trained.items()}
        classifiers = {seed: each.classifier for seed, each in trained.items()}
        with replacing(model, "replicas") as new_model, replacing(reports, "replicas") as new_reports:
            model_meta = write_model(new_model, classifiers, chosen, spec)
            write_training(new_reports, histories, chosen, size)
        record.log_training(model, model_meta, reports, histories, seconds_of(trained, params.train, device))


if __name__ == "__main__":
    run_stage(main)
