"""Writes a model as an ONNX file: raw pixels in, probabilities out, compared with PyTorch before it is written."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress

import numpy as np
import onnx
import torch
from mlflow.entities import Run
from torch import Tensor, nn

from classifier.data.dataset import read_meta, read_split
from classifier.errors import UserError
from classifier.networks.inference import probabilities_of
from classifier.networks.model import Classifier
from classifier.networks.model_dir import ModelMeta, read_model, read_model_meta
from classifier.project.lineage import project_root
from classifier.recording.tags import COMMIT_TAG, DATA_TAG, TEST_TAG, upgraded_tags
from classifier.repository.outputs import DATA
from classifier.runs.comparison import find_test_images
from classifier.runs.reading import artifact, datasets_of, frame
from classifier.serving.card import CLOSE, Accuracy, Card, same_answer, warm_up_image
from classifier.serving.runtime import INPUT, OUTPUT, Model
from classifier.serving.stored import Source
from classifier.workers import threads

OPSET = 20
BATCH = 250  # images per PyTorch forward pass in the comparison


def exported(source: Source) -> bytes:
    """Export a model to ONNX and compare the result with PyTorch on the whole test split."""
    meta, classifier = read_model_meta(source.folder), read_model(source.folder)
    with threads(1):  # the order of sums, and the last digits of `warm_up`, depend on the number of threads
        content = to_onnx(classifier, card_of(meta, classifier, source.run))
    verify(content, classifier, test_images(source, meta))
    return content


def card_of(meta: ModelMeta, classifier: Classifier, run: Run | None) -> Card:
    """The metadata of the ONNX file: the model and its run."""
    tags, metrics = (run.data.tags, run.data.metrics) if run else ({}, {})
    value, low, high = (metrics.get(f"test/accuracy{end}") for end in ("", "_low", "_high"))
    confidence, images = interval_of(run) if run else (None, None)
    inputs = datasets_of(run) if run else []
    preprocessing = meta.preprocessing
    image = warm_up_image(preprocessing.channels, preprocessing.image_size)
    return Card(
        dataset=inputs[0].dataset.name if inputs else meta.dataset,  # the name for display
        architecture=meta.architecture,
        class_names=meta.class_names,
        preprocessing=preprocessing,
        ranges=meta.ranges,
        weights_sha256=meta.weights_sha256,
        run_id=run.info.run_id if run else None,
        git_commit=tags.get(COMMIT_TAG),
        data_digest=tags.get(DATA_TAG),
        accuracy=None
        if value is None or low is None or high is None or confidence is None or images is None
        else Accuracy(value=value, low=low, high=high, confidence=confidence, images=images),
        opset=OPSET,
        warm_up=[round(each, 6) for each in probabilities_of(classifier, image[None])[0].tolist()],
    )


def interval_of(run: Run) -> tuple[float | None, int | None]:
    """The confidence level of a run's interval and the number of its test images; None if they were not recorded."""
    metrics = run.data.metrics
    if "test/n" in metrics:  # recorded by an earlier version
        return metrics["test/confidence"], int(metrics["test/n"])
    with suppress(OSError, ValueError, KeyError):
        summary = json.loads(artifact(run.info.artifact_uri, "evaluate/summary.json"))
        return summary["confidence"], summary["images"]["test"]
    return None, None


def test_images(source: Source, meta: ModelMeta) -> np.ndarray:
    """The test split that a model was evaluated on, `(N, C, H, W) uint8`, from the workspace or DVC's cache.

    Raises UserError or FileNotFoundError, with the command that fetches it, if neither has it.
    """
    folder = project_root() / DATA
    wanted = upgraded_tags(source.run.data.tags).get(TEST_TAG) if source.run else None
    with suppress(FileNotFoundError):
        found = read_meta(folder)
        if found.name == meta.dataset and wanted in (None, found.sha256["test"]):
            return read_split(folder, "test", found).images
    if source.run:
        return find_test_images(frame([source.run]))
    raise UserError(f"{folder} is not {meta.dataset}, whose test split is needed to verify the export: run dvc repro")


class Served(nn.Module):
    """Raw images `(N, C, H, W) uint8` -> probabilities `(N, classes)` float32."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(images)
        return logits.float().softmax(1)


def to_onnx(classifier: Classifier, card: Card) -> bytes:
    """Export a classifier in evaluation mode to ONNX. Equal weights and cards give equal bytes.

    Raises UserError if PyTorch cannot export the network.
    """
    # Autograd looks for devices at its first use. It must not find the ones that the exporter simulates, because no
    # training process could be forked after that.
    torch.zeros((), requires_grad=True).backward()  # type: ignore[no-untyped-call]
    example = torch.zeros((2, *card.warm_up_image().shape), dtype=torch.uint8)  # of one, the batch size would be fixed
    try:
        with warnings.catch_warnings(action="ignore"):  # of the exporter, about its own code
            program = torch.onnx.export(
                Served(classifier).eval(),
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(f"PyTorch cannot export {card.architecture} to ONNX: {reason}") from None
    assert program is not None
    return _plain(program.model_proto, card)


def _plain(model: onnx.ModelProto, card: Card) -> bytes:
    """Serialize without the stack traces and paths of this machine that the exporter adds to every node."""
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        for item in (graph, *graph.node, *getattr(graph, "value_info", ())):
            item.ClearField("metadata_props")
            item.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    model.ClearField("doc_string")
    model.producer_name, model.producer_version = "classifier export", ""
    onnx.helper.set_model_props(model, dict(sorted(card.metadata().items())))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def verify(content: bytes, classifier: Classifier, images: np.ndarray) -> None:
    """Compare the ONNX file with PyTorch on images `(N, C, H, W) uint8`.

    Raises UserError, which names the first image whose predicted class differs or whose probabilities differ by more
    than CLOSE.
    """
    model = Model(content, "the exported model")
    model.warm_up()
    for start in range(0, len(images), BATCH):
        expected = probabilities_of(classifier, images[start : start + BATCH])
        for number, (image, theirs) in enumerate(zip(images[start : start + BATCH], expected, strict=True), start):
            ours = model.probabilities(image)
            if not same_answer(ours, theirs):
                names = model.card.class_names
                raise UserError(
                    f"onnxruntime and PyTorch disagree on test image {number}: {names[ours.argmax()]!r} and "
                    f"{names[theirs.argmax()]!r}, a probability differs by {np.abs(ours - theirs).max():.2g}: allowed "
                    f"are the same class and {CLOSE:g}"
                )
