"""This project's engine: the same training, described in params.yaml and run by the code that `dvc repro` runs.

    python examples/three_levels/with_engine.py

No loop is written here. The stages download and normalize prepare the data, and `train_one` trains, as it does for the
stage train. `dvc repro` does the same in the project's folder, keeps the results and records the run in MLflow.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from ruamel.yaml import YAML
from tutorial import ROOT, Result, Settings, accuracy, dataset_and_folder, run

from classifier.commands.recipe import apply
from classifier.data.dataset import read_meta, read_split
from classifier.device import pick_device, set_precision
from classifier.networks.inference import predict
from classifier.params import load_params
from classifier.training.console import Console
from classifier.training.loop import train_one
from classifier.training.steps import steps_per_epoch
from stages import download, normalize


def params_of(settings: Settings) -> str:
    """The project's params.yaml with the values of the recipe tutorial-mnist, and then those of `settings`."""
    dataset, folder = dataset_and_folder(settings)
    values = YAML(typ="safe", pure=True).load(ROOT / "recipes/tutorial-mnist.yaml")["params"]
    values["download"] |= {"dataset": dataset, "mirror": str(folder)}
    values["train"] |= {
        "seed": settings.seed,
        "seeds": 1,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "momentum": settings.momentum,
        "log_every": settings.log_every,
        "precision": settings.precision,
    }
    return apply((ROOT / "params.yaml").read_text(), values)[0]


def main(settings: Settings) -> Result:
    with TemporaryDirectory() as temporary:
        file, raw, data, report = (Path(temporary, name) for name in ("params.yaml", "raw", "normalized", "report"))
        file.write_text(params_of(settings))
        download.main([str(file), str(raw)])
        normalize.main([str(file), str(raw), str(data), str(report)])
        params, meta = load_params(file).train, read_meta(data)
        device = pick_device(params.device, "train.device")
        set_precision(params.precision, device)
        with Console(params, steps_per_epoch(sum(meta.counts["train"]), params), [], live=False) as console:
            trained = train_one(data, settings.seed, params, device, console.show)
        test = read_split(data, "test", meta)

        def digits(images: np.ndarray) -> np.ndarray:
            logits = predict(trained.classifier, torch.from_numpy(images).to(device), len(images))
            return logits.argmax(dim=1).cpu().numpy()

        losses = [row.running_loss for row in trained.rows if row.running_loss is not None]
        weights = {name: value.cpu().numpy() for name, value in trained.classifier.network.state_dict().items()}
        return Result(losses, weights, accuracy(digits, test))


if __name__ == "__main__":
    run(main)
