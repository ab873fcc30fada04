"""Pretrained weights: which are taken, what is refused, and that no file runs code."""

import hashlib
import io
import pickle  # noqa: TID251, what the test refuses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torchvision import models

from classifier.errors import UserError
from classifier.networks import pretrained
from classifier.networks.manifest import PretrainedManifest, write_none
from classifier.networks.model_dir import write_model
from classifier.networks.pretrained import initial, plain_tensors, write_file
from classifier.networks.registry import build, specify
from classifier.networks.zoo import Published
from classifier.project.checksummed import read_checksummed
from stages.pretrained import provide
from tests.networks.test_registry import data, digits  # noqa: F401, a fixture
from tests.samples import ROOT, file_params

MOBILENET = ROOT.parent / "shared/data/weights/mobilenet_v2-imagenet-features.safetensors"


def params(**values):
    return file_params().override({f"train.{name}": value for name, value in values.items()})


def resnet(classes=1000):
    torch.manual_seed(7)
    return models.resnet18(num_classes=classes)


def pth(state):
    content = io.BytesIO()
    torch.save(state, content)  # noqa: TID251, as torchvision's files are
    return content.getvalue()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(resnet().state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "pretrained"
    made.mkdir()
    return made


def test_all_but_the_head_is_taken_and_the_head_follows_the_seed(digits, file, folder):  # noqa: F811
    provide(params(network="resnet18", pretrained="file", pretrained_file=str(file)), folder)
    begin = initial(data(digits, 3, 64, classes=7), "resnet18", "file", folder)
    first, again, other = (begin.classifier(seed).network.state_dict() for seed in (1, 1, 2))
    expected = resnet().state_dict()
    assert first["fc.weight"].shape == (7, 512)
    for name in expected.keys() - {"fc.weight", "fc.bias"}:
        assert torch.equal(first[name], expected[name]), name
        assert torch.equal(other[name], expected[name]), name
    assert torch.equal(first["fc.weight"], again["fc.weight"])
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert begin.spec.pretrained == f"mine.safetensors, SHA-256 {digest}"


def test_a_head_of_as_many_classes_is_taken_too(digits, tmp_path, folder):  # noqa: F811
    save_file(resnet(7).state_dict(), tmp_path / "mine.safetensors")
    write_file(folder, "resnet18", tmp_path / "mine.safetensors", own_statistics=False)
    begin = initial(data(digits, 3, 64, classes=7), "resnet18", "file", folder)
    assert torch.equal(begin.classifier(1).network.fc.weight, resnet(7).fc.weight)


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_std_are_the_weights_own_unless_params_name_them(digits, file, folder, channels):  # noqa: F811
    meta = data(digits, channels, 64)
    write_file(folder, "resnet18", file, own_statistics=False)
    spec = initial(meta, "resnet18", "file", folder).spec
    assert (spec.mean, spec.std) == IMAGENET
    write_file(folder, "resnet18", file, own_statistics=True)
    spec = initial(meta, "resnet18", "file", folder).spec
    assert (spec.mean, spec.std) == ([0.25] * 3, [0.5] * 3)


def test_the_model_of_an_earlier_training_brings_its_own_mean_and_std(digits, tmp_path, folder):  # noqa: F811
    spec = specify(data(digits, 3, 64), "resnet18")
    write_model(tmp_path / "model", {0: build(spec)}, 0, spec)
    write_file(folder, "resnet18", tmp_path / "model/weights.safetensors", own_statistics=False)
    found = initial(data(digits, 3, 64, classes=5), "resnet18", "file", folder).spec
    assert (found.mean, found.std) == (spec.mean, spec.std) == ([0.25] * 3, [0.5] * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv1.weight"), r"do not fit resnet18: missing: conv1.weight$"),
        (lambda state: state.update(extra=torch.zeros(1)), r"do not fit resnet18: unexpected: extra$"),
        (lambda state: state.update({"bn1.bias": torch.zeros(3)}), r"do not fit resnet18: other shapes: bn1.bias$"),
    ],
)
def test_weights_of_another_network_are_named_in_one_line(digits, tmp_path, folder, change, message):  # noqa: F811
    state = resnet().state_dict()
    change(state)
    save_file(state, tmp_path / "mine.safetensors")
    write_file(folder, "resnet18", tmp_path / "mine.safetensors", own_statistics=False)
    with pytest.raises(UserError, match=message):
        initial(data(digits, 3, 64), "resnet18", "file", folder).classifier(0)


def test_published_weights_come_from_a_mirror_verified_by_the_digits_of_their_name(
    digits,  # noqa: F811
    tmp_path,
    folder,
    monkeypatch,
):
    content = pth(resnet().state_dict())
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(Published, "of", classmethod(lambda cls, network: cls(name, "https://weights.invalid/")))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / name).write_bytes(content)
    monkeypatch.setenv("DATA_MIRROR", str(tmp_path / "mirror"))
    provide(params(network="resnet18", pretrained="imagenet"), folder)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "weights.safetensors"}
    assert (folder / "weights.safetensors").read_bytes() == save(resnet().state_dict())
    manifest = read_checksummed(folder / "manifest.json", PretrainedManifest, "pretrained")
    assert (manifest.source, manifest.mean) == (f"https://weights.invalid/{name}", IMAGENET[0])
    begin = initial(data(digits, 3, 64), "resnet18", "imagenet", folder)
    assert torch.equal(begin.classifier(0).network.conv1.weight, resnet().conv1.weight)
    (tmp_path / "mirror" / name).write_bytes(content[:-1])
    settings = params(network="resnet18", pretrained="imagenet").override({"download.retries": 0})
    with pytest.raises(OSError, match=f"{name} could not be fetched .* wrong checksum"):
        provide(settings, folder)


def test_every_network_of_torchvision_has_published_weights_with_digits():
    for name in models.list_models(module=models):
        published = Published.of(name)
        assert published.address.startswith("https://")
        digits_of_name = published.checksum.removeprefix("sha256:")
        assert len(digits_of_name) >= 8
        assert int(digits_of_name, 16) >= 0


def test_names_of_old_files_are_those_of_today():
    published = Published.of("densenet121")
    old = {"features.denseblock1.denselayer1.norm.1.weight": 1, "features.conv0.weight": 2, "aux1.conv.conv.weight": 3}
    assert published.converted(old) == {
        "features.denseblock1.denselayer1.norm1.weight": 1,
        "features.conv0.weight": 2,
    }


def test_positions_of_a_vision_transformer_are_interpolated_to_the_images_size(digits, tmp_path, folder):  # noqa: F811
    torch.manual_seed(0)
    network = models.VisionTransformer(64, 32, 1, 2, 8, 16)
    state = network.state_dict()
    found = pretrained.fitting_positions(
        "vit_small", state, models.VisionTransformer(128, 32, 1, 2, 8, 16).state_dict()
    )
    assert found["encoder.pos_embedding"].shape == (1, 1 + 16, 8)
    assert torch.equal(found["encoder.pos_embedding"][:, 0], state["encoder.pos_embedding"][:, 0])
    assert pretrained.fitting_positions("vit_small", state, state) is state


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["zip", "old"])
def test_a_pickle_bomb_does_not_run(tmp_path, form):
    fuse = tmp_path / "exploded"
    bomb = {"conv1.weight": torch.zeros(1), "bomb": Bomb(fuse)}
    content = pth(bomb) if form == "zip" else pickle.dumps(bomb)
    with pytest.raises(UserError, match=r"mine\.pth does not hold plain tensors: save its state_dict as safetensors"):
        plain_tensors(content, "mine.pth")
    assert not fuse.exists()
    pickle.loads(pickle.dumps(Bomb(fuse)))  # noqa: S301
    assert fuse.exists()  # such a file is a bomb


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no file of PyTorch's", "does not hold plain tensors"),
        (pth([torch.zeros(1)]), "holds list: allowed is a state_dict, tensors by name"),
        (pth({"state_dict": {"a": torch.zeros(1)}}), "holds 'state_dict' that is not a tensor"),
    ],
)
def test_other_pth_files_are_refused_in_one_line(content, message):
    with pytest.raises(UserError, match=message) as caught:
        plain_tensors(content, "mine.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "lenet5", "pretrained": "imagenet"}, "imagenet with train.network: lenet5; allowed are names of"),
        ({"network": "resnet18", "pretrained": "file"}, r"train.pretrained_file: weights: allowed are files named"),
        (
            {"network": "resnet18", "pretrained": "file", "pretrained_file": "weights/none.pth"},
            r"train.pretrained_file: weights/none.pth is not a file: copy it there, or name another path",
        ),
    ],
)
def test_what_cannot_be_provided_is_refused(folder, settings, message):
    with pytest.raises(UserError, match=message):
        provide(params(**settings), folder)


def test_weights_of_other_params_or_other_bytes_are_refused(digits, file, folder):  # noqa: F811
    meta = data(digits, 3, 64)
    write_none(folder, "resnet18")
    with pytest.raises(UserError, match=r"was made for resnet18 and train.pretrained: None, not for resnet18 and file"):
        initial(meta, "resnet18", "file", folder)
    write_file(folder, "resnet18", file, own_statistics=False)
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"weights.safetensors has SHA-256 .* run dvc repro -f pretrained"):
        initial(meta, "resnet18", "file", folder)
    assert initial(meta, "resnet18", None, None).weights is None


@pytest.mark.skipif(not MOBILENET.is_file(), reason=f"{MOBILENET} does not exist")
def test_the_published_features_of_mobilenet_v2(digits, folder):  # noqa: F811
    write_file(folder, "mobilenet_v2", MOBILENET, own_statistics=False)
    begin = initial(data(digits, 3, 96), "mobilenet_v2", "file", folder)
    found, expected = begin.classifier(0).network.state_dict(), load_file(MOBILENET)
    assert found.keys() - expected.keys() == {"classifier.1.weight", "classifier.1.bias"}
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert begin.spec.mean == IMAGENET[0]
