"""Every network by its name, with a head for the classes, for gray and colour images; and what is refused."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torchvision import models
from torchvision.models import regnet

from classifier.errors import UserError
from classifier.networks import own
from classifier.networks.registry import build, specify
from classifier.networks.zoo import smallest_size, statistics_of
from tests.processes import run_without
from tests.samples import ROOT, write_digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("data"))


def data(digits, channels=1, size=32, classes=10):
    """The meta.json of a data set of other images."""
    preprocessing = digits.preprocessing.model_copy(update={"image_size": size, "channels": channels})
    values = {"channels": channels, "size": size, "preprocessing": preprocessing}
    statistics = {"mean": [0.25] * channels, "std": [0.5] * channels}
    return digits.model_copy(update=values | statistics | {"class_names": [f"class {n}" for n in range(classes)]})


def logits(digits, network, channels=3, size=64, classes=7, count=2):
    classifier = build(specify(data(digits, channels, size, classes), network)).eval()
    with torch.inference_mode():
        return classifier(torch.zeros(count, channels, size, size, dtype=torch.uint8))


# A network of each family; the others differ from it in their numbers of layers and channels.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "resnet18": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11": 32,
    "vit_b_32": 64,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", FAMILIES)
def test_a_network_of_each_family_gives_logits_of_the_classes(digits, network, channels):
    assert logits(digits, network, channels, FAMILIES[network]).shape == (2, 7)


def test_a_gray_image_is_that_image_three_times(digits):
    gray = build(specify(data(digits, 1, 64), "resnet18"), seed=4).eval()
    colour = build(specify(data(digits, 3, 64), "resnet18"), seed=4).eval()
    images = torch.randint(0, 256, (3, 1, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(gray(images), colour(images.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("network", ["resnet18", "example:small"])
def test_initial_weights_follow_the_seed(digits, network):
    first, second, other = (build(specify(data(digits), network), seed).network.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        ("lenet5", 64, "lenet5 takes images of 32x32 pixels, these are 64x64: set normalize.image_size to 32, or"),
        ("resnet81", 64, "there is no network 'resnet81'; did you mean resnet18.*timm/NAME, and module:function"),
        ("vit_b_16", 40, "vit_b_16 does not take images of 40x40 pixels: Input shape indivisible by patch size!"),
        ("maxvit_t", 64, "maxvit_t does not take images of 64x64 pixels"),
        ("timm/resnet81", 64, "there is no network 'timm/resnet81'; did you mean timm/resnet18"),
        ("example", 32, "there is no network 'example'; for a function of networks/example.py write example:function"),
        ("missing:small", 32, r"network missing:small: .*networks/missing.py does not exist"),
        ("example:large", 32, r"network example:large: .*networks/example.py has no function large"),
        ("os:getcwd", 32, r"network os:getcwd: .*networks/os.py does not exist"),
        ("../evil:small", 32, "the network '../evil:small' should be module:function, as in example:small"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(digits, network, size, message):
    with pytest.raises(UserError, match=message) as caught:
        build(specify(data(digits, 3, size), network))
    assert "\n" not in str(caught.value)


def test_networks_of_timm_by_name(digits):
    pytest.importorskip("timm")
    assert logits(digits, "timm/resnet10t").shape == (2, 7)
    assert logits(digits, "timm/vit_tiny_patch16_224", channels=1, size=32).shape == (2, 7)


def test_without_timm_its_networks_say_what_to_install(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as Python notes what cannot be imported
    with pytest.raises(UserError, match=r"^timm/resnet10t needs timm: pip install timm$"):
        build(specify(data(digits), "timm/resnet10t"))
    with pytest.raises(UserError, match=r"^timm/resnet10t needs timm: pip install timm$"):
        statistics_of("timm/resnet10t")


def test_a_network_of_ones_own(digits):
    assert logits(digits, "example:small", channels=1, size=20).shape == (2, 7)


@pytest.fixture
def write_own(tmp_path, monkeypatch):
    """Write a file of the project's folder networks/."""
    folder = tmp_path / "networks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.setattr(own, "own_folder", lambda: folder)
    monkeypatch.syspath_prepend(tmp_path)
    loaded = [name for name in sys.modules if name.split(".")[0] == "networks"]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    yield lambda name, text: (folder / f"{name}.py").write_text(text)
    for name in [name for name in sys.modules if name.split(".")[0] == "networks"]:
        del sys.modules[name]


def test_an_error_of_ones_own_network_keeps_its_traceback(digits, write_own):
    write_own("mine", "def broken(channels, classes, size):\n    return 1 // 0\n")
    with pytest.raises(ZeroDivisionError):
        build(specify(data(digits), "mine:broken"))


@pytest.mark.parametrize("page", ["README.md", "docs/networks.md"])
def test_the_pages_networks_can_be_built(page, digits, write_own):
    text = (ROOT / page).read_text()
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def net(" in block]
    write_own("mine", block)
    assert build(specify(data(digits), "mine:net"))(torch.zeros(2, 1, 32, 32, dtype=torch.uint8)).shape == (2, 10)


def test_one_that_returns_no_module_is_named(digits, write_own):
    write_own("mine", "def none(channels, classes, size):\n    pass\n")
    with pytest.raises(UserError, match=r"network mine:none returns NoneType: allowed is a torch\.nn\.Module"):
        build(specify(data(digits), "mine:none"))


def test_one_that_takes_other_arguments_is_named(digits, write_own):
    write_own("mine", "def net(classes, width=8):\n    pass\n")
    with pytest.raises(
        UserError, match=r"mine\.py has net\(classes, width=8\): allowed is net\(channels, classes, size\)"
    ):
        build(specify(data(digits), "mine:net"))


def test_one_may_import_others_of_its_folder(digits, write_own):
    write_own("blocks", "from torch import nn\nbody = nn.Flatten\n")
    write_own(
        "mine",
        "from torch import nn\nfrom networks.blocks import body\n"
        "def net(channels, classes, size):\n"
        "    return nn.Sequential(body(), nn.Linear(channels * size * size, classes))\n",
    )
    assert build(specify(data(digits), "mine:net"))(torch.zeros(1, 1, 32, 32, dtype=torch.uint8)).shape == (1, 10)


def test_lenet5_imports_neither_torchvision_nor_timm(tmp_path):
    code = (
        "import sys; from pathlib import Path; from classifier.networks.registry import build; "
        "from tests.samples import write_digits; build(write_digits(Path(sys.argv[1])))"
    )
    run_without(["torchvision", "timm"], code, tmp_path)


def test_the_families_are_all_of_torchvisions():
    def family(name):
        return name.split("_")[0].rstrip("0123456789")

    assert {family(name) for name in models.list_models(module=models)} <= {family(n) for n in FAMILIES} | {
        "wide",
        "resnext",
    }
    assert Path(ROOT / "networks/example.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("network", models.list_models(module=models))
def test_every_network_of_torchvision_has_logits_for_gray_and_colour_images(digits, network, monkeypatch):
    """On the meta device, which computes shapes only."""
    widths = regnet.BlockParams.from_init_params

    def on_the_cpu(*arguments, **named):  # the numbers of a RegNet's channels are read from a tensor
        with torch.device("cpu"):
            return widths(*arguments, **named)

    monkeypatch.setattr(regnet.BlockParams, "from_init_params", on_the_cpu)
    size = max(smallest_size(network), 32)
    for channels in (1, 3):
        with torch.device("meta"), torch.no_grad():
            classifier = build(specify(data(digits, channels, size, classes=7), network)).eval()
            assert classifier(torch.zeros(2, channels, size, size, dtype=torch.uint8)).shape == (2, 7)
