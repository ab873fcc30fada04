"""The known data sets: home, licence, citation, classes, files, published checksums and official mirrors.

Files, checksums and mirrors of MNIST and its two drop-in replacements are those of torchvision. `digits` is a file of
the installed scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class SourceFile:
    """One original file; the checksum is `md5:...` or `sha256:...`."""

    name: str
    checksum: str
    address: str | None = None  # of this file alone, tried after all mirrors


@dataclass(frozen=True)
class Origin:
    """The files of one data set and their locations."""

    files: tuple[SourceFile, ...]
    mirrors: tuple[str, ...]  # official base addresses, https before http; never empty
    installed: Path | None = None  # a folder on this machine that already holds them

    def address(self, file: SourceFile) -> str:
        """The official address of a file, the same whichever mirror it came from."""
        return self.mirrors[0] + file.name


@dataclass(frozen=True)
class Source:
    """Facts about a data set that do not depend on its files."""

    home: str  # address
    licence: str
    citation: str
    class_names: tuple[str, ...]


DIGITS = tuple("0123456789")

SOURCES = {
    "digits": Source(
        home="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
        licence="CC BY 4.0",
        citation="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits. UCI Machine Learning Repository, "
        "1998. doi:10.24432/C50P49. The 1,797 images of its test set, as packaged by scikit-learn.",
        class_names=DIGITS,
    ),
    "mnist": Source(
        home="http://yann.lecun.com/exdb/mnist/",
        licence="CC BY-SA 3.0",
        citation="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition. "
        "Proceedings of the IEEE 86(11), 1998. doi:10.1109/5.726791",
        class_names=DIGITS,
    ),
    "fashion_mnist": Source(
        home="https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT",
        citation="H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST: a novel image dataset for benchmarking machine "
        "learning algorithms. 2017. arXiv:1708.07747",
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    ),
    "kmnist": Source(
        home="http://codh.rois.ac.jp/kmnist/",
        licence="CC BY-SA 4.0",
        citation="T. Clanuwat, M. Bober-Irizar, A. Kitamoto, A. Lamb, K. Yamamoto, D. Ha: Deep learning for classical "
        "Japanese literature. 2018. arXiv:1812.01718. KMNIST dataset, created by CODH, doi:10.20676/00000341",
        class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    "cifar10": Source(
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence="none stated; its home asks to cite the report",
        citation="A. Krizhevsky: Learning multiple layers of features from tiny images. "
        "Technical report, University of Toronto, 2009.",
        class_names=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
    ),
}


def origin(dataset: str) -> Origin:
    """Files, checksums and mirrors of a data set; imports torchvision (3.5 s) for MNIST, Fashion-MNIST and KMNIST."""
    if dataset == "digits":
        return Origin(
            # Every scikit-learn release so far ships these bytes; a release that changes them fails the checksum.
            files=(
                SourceFile("digits.csv.gz", "sha256:09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"),
            ),
            mirrors=("https://raw.githubusercontent.com/scikit-learn/scikit-learn/1.5.0/sklearn/datasets/data/",),
            installed=_folder_of("sklearn", "datasets", "data"),
        )
    if dataset == "cifar10":
        # The home page publishes MD5 c32a1d4ab5d03f1284b67883e8d87530; this is the SHA-256 of that file, which has
        # 170,052,171 bytes. TensorFlow Datasets and others verify it too.
        return Origin(
            files=(
                SourceFile(
                    "cifar-10-binary.tar.gz", "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
                ),
            ),
            mirrors=("https://www.cs.toronto.edu/~kriz/",),
        )
    from torchvision.datasets import KMNIST, MNIST, FashionMNIST

    table = {"mnist": MNIST, "fashion_mnist": FashionMNIST, "kmnist": KMNIST}[dataset]
    return Origin(
        files=tuple(SourceFile(name, f"md5:{md5}") for name, md5 in table.resources),
        mirrors=tuple(sorted(table.mirrors, key=lambda mirror: not mirror.startswith("https://"))),
    )


def _folder_of(package: str, *parts: str) -> Path | None:
    """A folder of an installed package, found without importing it; None if it is not installed."""
    spec = find_spec(package)
    return Path(spec.origin).parent.joinpath(*parts) if spec and spec.origin else None
