"""Where each data set comes from: home, licence, citation, classes, files, published checksums, official mirrors.

Files, checksums and mirrors of the sets that torchvision knows are read from its own resource tables, and torchvision
is imported for them alone: `digits` is a file of the installed scikit-learn, found without importing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class SourceFile:
    """One original file; the checksum is `md5:...` or `sha256:...`, as published."""

    name: str
    checksum: str


@dataclass(frozen=True)
class Origin:
    """The files of one data set and where they lie."""

    files: tuple[SourceFile, ...]
    mirrors: tuple[str, ...]  # official base addresses, https before http; never empty
    installed: Path | None = None  # a folder of this machine that already holds them

    def address(self, file: SourceFile) -> str:
        """The official address of a file, the same whichever mirror it came from."""
        return self.mirrors[0] + file.name


@dataclass(frozen=True)
class Source:
    """What is known of a data set without any file of it."""

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
    """Files, checksums and mirrors of a data set; imports torchvision (3.5 s) unless it is `digits`."""
    if dataset == "digits":
        return Origin(
            # The bytes that every scikit-learn so far has shipped; a release that changes them is noticed here.
            files=(
                SourceFile("digits.csv.gz", "sha256:09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"),
            ),
            mirrors=("https://raw.githubusercontent.com/scikit-learn/scikit-learn/1.5.0/sklearn/datasets/data/",),
            installed=_folder_of("sklearn", "datasets", "data"),
        )
    from torchvision.datasets import CIFAR10, KMNIST, MNIST, FashionMNIST

    if dataset == "cifar10":
        base, name = CIFAR10.url.rsplit("/", 1)
        return Origin(files=(SourceFile(name, f"md5:{CIFAR10.tgz_md5}"),), mirrors=(f"{base}/",))
    table = {"mnist": MNIST, "fashion_mnist": FashionMNIST, "kmnist": KMNIST}[dataset]
    return Origin(
        files=tuple(SourceFile(name, f"md5:{md5}") for name, md5 in table.resources),
        mirrors=tuple(sorted(table.mirrors, key=lambda mirror: not mirror.startswith("https://"))),
    )


def _folder_of(package: str, *parts: str) -> Path | None:
    """A folder inside an installed package, without importing the package; None when it is not installed."""
    spec = find_spec(package)
    return Path(spec.origin).parent.joinpath(*parts) if spec and spec.origin else None
