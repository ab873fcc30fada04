"""The ONNX file: equal bytes, nothing of this machine, and the answers of PyTorch."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mlflow.entities import Dataset, DatasetInput, Run, RunData, RunInfo, RunInputs
from torch import nn

from classifier.errors import UserError
from classifier.networks.inference import probabilities_of
from classifier.networks.model import Classifier
from classifier.networks.model_dir import read_model, read_model_meta
from classifier.serving.card import Card, same_answer
from classifier.serving.export import OPSET, card_of, to_onnx, verify
from classifier.serving.runtime import Model
from tests.samples import digits_split


@pytest.fixture(scope="module")
def trained_model(served):
    folder = served.folder / "models/classifier"
    return read_model_meta(folder), read_model(folder)


@pytest.fixture(scope="module")
def content(trained_model):
    meta, classifier = trained_model
    return to_onnx(classifier, card_of(meta, classifier, None))


def test_exported_twice_it_has_equal_bytes(trained_model, content):
    meta, classifier = trained_model
    assert to_onnx(classifier, card_of(meta, classifier, None)) == content


def test_nothing_in_it_names_this_machine(content):
    model = onnx.load_model_from_string(content)
    for weights in model.graph.initializer:
        weights.ClearField("raw_data")
    text = str(model)
    assert "Conv" in text
    assert not [word for word in ("/", ".py", "File ", "stack", "torch") if word in text]


def test_a_folder_of_images_is_called_as_in_its_run(trained_model):
    name = Dataset(name="photos", digest="1", source_type="local", source="{}")
    run = Run(
        RunInfo("1", "1", "u", "FINISHED", 0, 1, "active", artifact_uri="none"),
        RunData(),
        RunInputs([DatasetInput(name)]),
    )
    meta, classifier = trained_model
    assert (card_of(meta, classifier, None).dataset, card_of(meta, classifier, run).dataset) == ("digits", "photos")


def test_it_takes_any_number_of_raw_images(content):
    model = onnx.load_model_from_string(content)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (images,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", 1, 32, 32])
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
    for count in (1, 2, 7):
        (found,) = session.run(None, {"images": digits_split(count).images})
        assert found.shape == (count, 10)
        np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_its_metadata_say_where_it_comes_from(served, model):
    """Of the file that `classifier export` wrote, so with the run."""
    metadata = model.session.get_modelmeta().custom_metadata_map
    meta = read_model_meta(served.folder / "models/classifier")
    assert json.loads(metadata["class_names"]) == meta.class_names
    assert json.loads(metadata["preprocessing"]) == meta.preprocessing.model_dump()
    assert metadata["weights_sha256"] == meta.weights_sha256
    tags = dict(served.query("SELECT key, value FROM tags"))
    assert metadata["git_commit"] == tags["git.commit"]
    assert metadata["data_digest"] == tags["dvc.data"]
    ((run_id,),) = served.query("SELECT run_uuid FROM runs")
    assert metadata["run_id"] == run_id
    assert json.loads(metadata["accuracy"])["value"] == served.metrics()["accuracy"]
    assert Card.of(metadata, "it").metadata() == metadata


def test_the_comparison_names_the_first_image_that_differs(trained_model, content):
    _, classifier = trained_model
    images = digits_split(40).images
    verify(content, classifier, images)

    class Elsewhere(nn.Module):
        """Gives image 33 another class."""

        def forward(self, normalized):
            logits = classifier.network(normalized)
            wrong = (normalized == classifier.normalize(torch.from_numpy(images[33:34]))).flatten(1).all(1)
            return torch.where(wrong[:, None], -logits, logits)

    other = Classifier(Elsewhere(), [0.5], [0.5]).eval()
    other.network.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    other.scale, other.offset = classifier.scale, classifier.offset
    with pytest.raises(UserError, match=r"^onnxruntime and PyTorch disagree on test image 33: '\d' and '\d', a prob"):
        verify(content, other, images)


def test_a_file_whose_answer_is_not_the_stored_one_is_not_ready(content):
    model = onnx.load_model_from_string(content)
    (name,) = (each.name for each in model.graph.initializer if each.name.endswith("fc3.bias"))
    (bias,) = (each for each in model.graph.initializer if each.name == name)
    values = onnx.numpy_helper.to_array(bias) + np.arange(10, dtype=np.float32) / 1e4
    bias.CopyFrom(onnx.numpy_helper.from_array(values, name))
    changed = Model(model.SerializeToString(), "it")
    with pytest.raises(UserError, match="predicts differently here than when it was exported"):
        changed.warm_up()


@pytest.mark.parametrize("bad", [b"", b"no model"])
def test_a_file_that_is_none_is_refused_in_one_line(bad):
    with pytest.raises(UserError, match=r"^a\.onnx is not an ONNX model: .*$"):
        Model(bad, "a.onnx")


def test_an_onnx_file_of_another_program_is_refused(content):
    model = onnx.load_model_from_string(content)
    del model.metadata_props[:]
    with pytest.raises(UserError, match=r"^a\.onnx was not written by classifier export: classifier export a\.onnx$"):
        Model(model.SerializeToString(), "a.onnx")


class Normed(nn.Module):
    """Batch normalization, dropout, a residual connection, and global pooling."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.drop, self.head = nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Linear(8, 10)

    def forward(self, images):
        x = self.norm(self.first(images)).relu()
        return self.head(self.drop((x + self.second(x)).mean((2, 3))))


def test_a_network_with_batch_normalization_and_dropout_answers_as_in_evaluation(trained_model):
    meta, _ = trained_model
    torch.manual_seed(0)
    classifier = Classifier(Normed(), [0.5] * 3, [0.2] * 3)
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    classifier(torch.from_numpy(images))  # running statistics
    classifier.eval()
    colour = meta.preprocessing.model_copy(update={"channels": 3, "margin": 0})
    card = card_of(meta.model_copy(update={"preprocessing": colour}), classifier, None)
    model = Model(to_onnx(classifier, card), "it")
    found = np.stack([model.probabilities(image) for image in images])
    assert same_answer(found, probabilities_of(classifier, images))


def test_what_pytorch_cannot_export_is_one_line(trained_model):
    class Unusual(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1024, 10)

        def forward(self, images):
            return self.linear(images.flatten(1)) * (2 if images.sum() > 0 else 1)

    meta, _ = trained_model
    classifier = Classifier(Unusual(), [0.5], [0.5]).eval()
    with pytest.raises(UserError, match=r"^PyTorch cannot export lenet5 to ONNX: .*$") as refused:
        to_onnx(classifier, card_of(meta, classifier, None))
    assert "\n" not in str(refused.value)
