from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from classifier.params import DownloadParams
from classifier.project.files import sha256_of
from classifier.sources.catalog import SOURCES, origin


def test_the_table_holds_what_params_allow():
    assert [*SOURCES, "folder"] == list(DownloadParams.model_fields["dataset"].annotation.__args__)
    for source in SOURCES.values():
        assert len(source.class_names) == len(set(source.class_names)) == 10
        assert source.home.startswith("http")
        assert source.licence
        assert source.citation


def test_digits_are_a_file_of_the_installed_scikit_learn():
    (file,) = origin("digits").files
    found = importlib.util.find_spec("sklearn")
    installed = origin("digits").installed
    assert installed == Path(found.origin).parent / "datasets" / "data"
    assert file.checksum == f"sha256:{sha256_of(installed / file.name)}"


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "kmnist"])
def test_files_checksums_and_mirrors_are_torchvisions(dataset):
    from torchvision import datasets

    table = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST, "kmnist": datasets.KMNIST}[dataset]
    found = origin(dataset)
    assert [(file.name, file.checksum) for file in found.files] == [
        (name, f"md5:{md5}") for name, md5 in table.resources
    ]
    assert set(found.mirrors) == set(table.mirrors)
    assert found.installed is None
    names = [name.split(" - ")[0] for name in table.classes]  # MNIST's are "0 - zero"
    assert list(SOURCES[dataset].class_names) == names


def test_cifar10_is_the_binary_archive_of_the_home_page_verified_by_its_sha256():
    found = origin("cifar10")
    (file,) = found.files
    assert found.address(file) == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert file.checksum == "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


def test_a_mirror_with_https_goes_first(monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://a/", "https://b/", "http://c/", "https://d/"])
    assert origin("mnist").mirrors == ("https://b/", "https://d/", "http://a/", "http://c/")
