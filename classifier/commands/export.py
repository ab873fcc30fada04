"""Write a trained model as one ONNX file, after comparing it with PyTorch on the whole test split."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from classifier.serving.references import DIRECTORY, FORMS, typed


def export(
    file: Annotated[
        Path, typer.Argument(dir_okay=False, help="the file to write, such as model.onnx", show_default=False)
    ],
    model: Annotated[str, typer.Option(parser=typed, metavar="MODEL", help=FORMS)] = DIRECTORY,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Write a trained model as one ONNX file.

    The file takes raw images (N, C, H, W) uint8 and returns probabilities (N, classes). Its metadata contain the class
    names, the preprocessing, the run, the commit, the data and the weights' SHA-256. Before it is written, onnxruntime
    and PyTorch must agree on every image of the test split: the same class, and probabilities that differ by at most
    1e-5. The file is also uploaded to the model of its run in MLflow.

    Example: classifier export model.onnx
    """
    print("exporting, and comparing with PyTorch on the whole test split", file=sys.stderr, flush=True)
    from classifier.project.files import sha256, write_atomic  # slow: torch, mlflow
    from classifier.serving.export import exported
    from classifier.serving.runtime import Model
    from classifier.serving.stored import ONNX, attach, find
    from classifier.tracking.errors import reported

    with reported():
        source = find(model)
        content = exported(source)
        write_atomic(file, content)
        if source.model:
            attach(source.model, content)
    card = Model(content, str(file)).card
    if as_json:
        print(
            json.dumps({"file": str(file), "sha256": sha256(content)} | card.model_dump(exclude={"warm_up"}), indent=2)
        )
        return
    print(f"{file}: {len(content):,} bytes, ONNX opset {card.opset}, weights {card.weights_sha256[:12]}")
    print("compared with PyTorch on the whole test split: the same classes, probabilities within 1e-5")
    if source.model:
        print(f"also in MLflow: {ONNX} of model {source.model.model_id}, run {card.run_id}")
    else:
        print("no run in MLflow has these weights: classifier record")
