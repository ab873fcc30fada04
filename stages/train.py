"""Train a network on the normalized images, one seed or several.

    python -m stages.train params.yaml data/normalized data/pretrained models/classifier reports/train

Reads: params.yaml, section `train`; the train and validation splits (only evaluate reads the test split); pretrained
weights, if train.pretrained asks for some.
Writes: the model directory (`classifier.networks.model_dir`), the report (`classifier.training.report`) and the run.
Why: the same params, data, code and libraries give the same bytes, on every x86-64 machine in portable arithmetic.
An interrupted training resumes from its last checkpoint (`classifier.training.checkpoint`). torchrun can start it in
several processes, on one machine or more (`classifier.training.ranks`): rank 0 is the stage, the others only compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from classifier.arithmetic import use
from classifier.data.dataset import DatasetMeta, check_decoder, read_meta, read_split
from classifier.params import Params, TrainParams, load_params
from classifier.project.cli import paths, run_stage
from classifier.project.processes import rank, world
from classifier.recording.run import Recording, recording

if TYPE_CHECKING:
    import torch

    from classifier.training.parts import Computation


@dataclass(frozen=True)
class Prepared:
    """The device, how it computes, its environment, and the fingerprint of all that determines the bits."""

    device: torch.device
    computation: Computation
    environment: dict[str, str]
    fingerprint: str


def main(arguments: list[str]) -> None:
    params_path, data, pretrained, model, reports = paths(arguments, "params", "data", "pretrained", "model", "reports")
    params, meta = load_params(params_path), read_meta(data)
    use(params.train.arithmetic)
    if rank():
        assist(params.train, data, pretrained)
        return
    check_decoder(meta)
    with recording("train", params) as record:
        train(params, data, meta, pretrained, model, reports, record)


def prepare(params: TrainParams, data: Path, pretrained: Path) -> Prepared:
    """Choose how to compute. Processes that torchrun started must agree here on what determines the bits."""
    # Imported here, so that this process imports torch while the recorder's imports mlflow: 2 s each.
    from classifier.device import be_deterministic, environment, keep_freed_memory, pick_device, set_precision
    from classifier.training.checkpoint import deciding, fingerprint_of
    from classifier.training.parts import computation_of
    from classifier.training.ranks import Ranks

    device = pick_device(params.device, "train.device")
    set_precision(params.precision, device)
    be_deterministic(device, strictly=params.deterministic)
    keep_freed_memory()
    computation, machine = computation_of(params, device), environment(device)
    if device.type == "cuda" and not params.deterministic:
        machine["deterministic"] = "false"
    decisive = computation.decisive(machine)
    if world() > 1:
        Ranks.joined(device).agree(deciding(params, data, decisive, Path(__file__), pretrained))
    fingerprint = fingerprint_of(params, data, decisive, Path(__file__), pretrained)
    return Prepared(device, computation, machine, fingerprint)


def assist(params: TrainParams, data: Path, pretrained: Path) -> None:
    """What ranks other than 0 do under torchrun: they compute, and write nothing."""
    from classifier.training.seeds import train_seeds

    device = prepare(params, data, pretrained).device
    train_seeds(data, params, device, lambda seed, row: None, pretrained=pretrained)


def train(
    params: Params, data: Path, meta: DatasetMeta, pretrained: Path, model: Path, reports: Path, record: Recording
) -> None:
    """Run the stage, recording into `record`."""
    from classifier.device import describe
    from classifier.networks.checks import check_last_batch, check_network
    from classifier.networks.layers import costs_of
    from classifier.networks.model_dir import write_model
    from classifier.networks.pretrained import initial
    from classifier.project.files import replacing
    from classifier.training.checkpoint import checkpointed
    from classifier.training.console import Console
    from classifier.training.history import HistoryRow
    from classifier.training.memory import check_batch, naming_half
    from classifier.training.picture import augmented_batch
    from classifier.training.report import write_training
    from classifier.training.seeds import median_seed, seconds_of, train_seeds
    from classifier.training.steps import steps_per_epoch

    prepared = prepare(params.train, data, pretrained)
    device, computation = prepared.device, prepared.computation
    begin, images = initial(meta, params.train.network, params.train.pretrained, pretrained), sum(meta.counts["train"])
    classifier = begin.classifier(params.train.seed)
    check_network(classifier, begin.spec)
    check_last_batch(classifier, begin.spec, images, params.train.batch_size)
    costs = costs_of(classifier, begin.spec)
    check_batch(params.train, costs, computation, device)
    work = record.recorded.enter_context(checkpointed(prepared.fingerprint, params.train.checkpoint_every))
    record.begin(work.run_key(params), prepared.environment | computation.recorded())
    record.log_data(data, meta)
    record.log_data_report(reports.with_name("data"))  # not a dependency: a changed picture must not retrain
    with Console(params.train, steps_per_epoch(images, params.train), record.log, work) as console:
        record.settle()
        network = f"{begin.spec.architecture}, {costs.parameters:,} parameters"
        console.say(f"{params.download.name}: {images:,} images, {network}, {describe(device)}, {computation}")

        def report(seed: int, row: HistoryRow) -> None:
            console.show(seed, row)
            record.log_row(seed, row, row.seconds)

        with naming_half(params.train, computation):
            trained = train_seeds(data, params.train, device, report, work, pretrained)

    chosen = median_seed(trained, params.train.keep.weights)
    histories = {seed: each.rows for seed, each in trained.items()}
    classifiers = {seed: each.classifier for seed, each in trained.items()}
    with replacing(model, "replicas") as new_model, replacing(reports, "replicas") as new_reports:
        model_meta = write_model(new_model, classifiers, chosen, begin.spec)
        picture = augmented_batch(classifiers[chosen], read_split(data, "train", meta), params.train, computation.parts)
        write_training(new_reports, histories, chosen, costs, params.train.keep.weights, picture)
    record.log_training(model, model_meta, reports, histories, seconds_of(trained, params.train, device))


if __name__ == "__main__":
    run_stage(main, shared=True)
