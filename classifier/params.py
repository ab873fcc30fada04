"""The schema of params.yaml: one frozen, strict model per section. Validation reports every problem at once.

All values are in params.yaml; the models have no defaults. `dvc.yaml` tracks each section as a whole.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError

from classifier.errors import UserError
from classifier.schema.problems import describe, unknown
from classifier.schema.ranges import Choices, Searched
from classifier.schema.reading import parse_yaml, read_text
from classifier.schema.section import Arithmetic, Device, Fraction, Section, Seed, items, keys, put
from classifier.schema.train import LENET5, LENET5_SIZE
from classifier.schema.train import AugmentParams as AugmentParams
from classifier.schema.train import TrainParams as TrainParams

STAGES = ("download", "normalize", "train", "evaluate")  # of dvc.yaml, in its order
SHOWN = 50  # problems listed in one message

# Runs, dvc.lock and users' files hold params of earlier versions. A key whose meaning changes gets a new name. A new
# key is listed in BEFORE with the value that keeps the behaviour of versions without it.
RENAMED = {  # old name -> current name
    "train.replicas": "train.seeds",
    "train.shift": "train.augment.shift",
    "train.rotation": "train.augment.rotation",
    "train.scale": "train.augment.scale",
    "evaluate.mistakes": "evaluate.misclassified",
}
BEFORE: dict[str, Any] = {  # new key -> value
    "download.folder": "images",
    **dict.fromkeys(f"download.{key}" for key in ("address", "sha256", "table", "classes", "groups")),
    "normalize.image_size": 32,
    "normalize.resize": "pad",
    "normalize.channels": "auto",
    "normalize.invert": False,
    "normalize.bad_images": "refuse",
    "normalize.leaks": "report",
    "train.arithmetic": "native",
    "train.parts": 1,
    "train.processes": "auto",
    "train.augment.per": "batch",
    "train.augment.flip": 0.0,
    "train.augment.crop": 1.0,
    "train.augment.policy": "none",
    "train.augment.erase": 0.0,
    "train.augment.mixup": 0.0,
    "train.augment.cutmix": 0.0,
    "train.network": "lenet5",
    "train.pretrained": None,
    "train.pretrained_file": "weights",
    "train.freeze": 0,
    "train.deterministic": True,
    "train.compile": False,
    "train.layer_decay": 1.0,
    "train.clip": None,
    "train.balance": "none",
    "train.keep.weights": "last",
    "train.keep.ema": 0.0,
    "train.keep.patience": None,
    "train.data": "auto",
    "evaluate.arithmetic": "native",
    "evaluate.corruptions": [],
}


LONGEST = 6000  # characters


class DownloadParams(Section):
    dataset: Literal["digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "folder"] = Field(
        description="data set to train on; digits needs no network; folder: your images"
    )
    folder: str = Field(
        min_length=1,
        description="folder, zip or tar with the images of dataset folder: a path in the project, or an absolute path",
    )
    address: str | None = Field(
        pattern=r"^(https?|file)://", description="address of a zip or tar to download, instead of download.folder"
    )
    sha256: str | None = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the zip or tar, 64 hexadecimal digits; required for address"
    )
    table: str | None = Field(
        min_length=1,
        description="CSV or Parquet file in download.folder with the columns path, label and, optionally, split and "
        "group; null: folders name the classes",
    )
    classes: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2)] | None = Field(
        description="class names in the order of their numbers, including classes without images; null: the names "
        "found, in natural order"
    )
    groups: Annotated[int, Field(ge=-64, le=64)] | Annotated[str, Field(min_length=1)] | None = Field(
        description="images of a group stay in one split: a column of the table, or a level of folders (1: the "
        "outermost, -1: the innermost); null: the column group, if there is one"
    )
    mirror: str | None = Field(
        min_length=1,
        description="base address or folder to try before the official mirrors; DATA_MIRROR takes precedence",
    )
    deadline_s: float = Field(gt=0, le=86400, description="time limit for one file from one mirror, seconds")
    retries: int = Field(ge=0, le=10, description="retries per mirror after a broken connection")

    def problems(self) -> Iterator[str]:
        path = PurePosixPath(self.folder)
        if self.folder.startswith("~") or ".." in path.parts or path == PurePosixPath():
            yield f"folder: {self.folder!r:.200}; allowed is a path in the project without .., or an absolute path"
        if self.address is not None and self.sha256 is None:
            yield f"address: {self.address!r:.200} with sha256: null; allowed is the archive's SHA-256"
        if self.groups == 0 or (isinstance(self.groups, int if self.table else str)):
            allowed = "a column of the table" if self.table else "a level of folders such as 1 or -1"
            yield f"groups: {self.groups!r:.200}; allowed is {allowed}, or null"
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            yield f"classes: {self.classes!r:.200}; allowed is each name once"
        if (length := len(str(self.classes))) > LONGEST:
            yield f"classes: {length:,} characters; allowed are {LONGEST:,}, MLflow's limit of a param"

    @property
    def name(self) -> str:
        """The data set's name for display."""
        return data_name(self.dataset, self.folder, self.address)


def data_name(dataset: str, folder: str, address: str | None) -> str:
    """A data set's name for display; for dataset `folder`, the name of its folder or archive."""
    if dataset != "folder":
        return dataset
    name = PurePosixPath(unquote(urlsplit(address).path) if address else folder).name
    return re.sub(r"(\.tar\.\w+|\.tar|\.tgz|\.zip)$", "", name) or dataset


class NormalizeParams(Section):
    seed: Seed = Field(description="seed of the stratified split")
    validation_fraction: Fraction = Field(
        description="fraction of each class's training images held out for validation; 0 disables validation"
    )
    test_fraction: float = Field(
        gt=0, lt=1, description="fraction of each class's images held out for testing, if the data has no test split"
    )
    image_size: int = Field(ge=8, le=4096, description="height and width of the images of dataset folder, pixels")
    resize: Literal["pad", "crop", "stretch"] = Field(
        description="dataset folder: keep the proportions and pad with black, keep them and crop to the centre, or "
        "stretch; always with antialiasing"
    )
    channels: Literal["auto", 1, 3] = Field(
        description="dataset folder: 1 (gray), 3 (RGB), or auto: 1 if all images are stored in gray"
    )
    invert: bool | Literal["auto"] = Field(
        description="dataset folder: 255 minus each pixel, for dark figures on a light background; auto: if the images "
        "are gray and most have a light border"
    )
    bad_images: Literal["refuse", "exclude"] = Field(
        description="files that cannot be used: stop with an error, or exclude them; reports/data/problems.csv "
        "lists them"
    )
    leaks: Literal["report", "refuse", "drop"] = Field(
        description="images with an exact or near duplicate in another split: report them, stop with an error, or "
        "drop them from train (or validation), so that the test split stays whole"
    )
    mean: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)] | None = Field(
        description="mean per channel of pixels scaled to 0..1; null computes it from the training split"
    )
    std: Annotated[list[Annotated[float, Field(gt=0, le=10)]], Field(min_length=1)] | None = Field(
        description="standard deviation per channel of pixels scaled to 0..1; null computes it from the training split"
    )

    def problems(self) -> Iterator[str]:
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            yield f"mean has {len(self.mean)} channels, std {len(self.std)}: allowed is the same number"


class EvaluateParams(Section):
    device: Device = Field(description="like train.device")
    arithmetic: Arithmetic = Field(description="like train.arithmetic")
    batch_size: int = Field(
        ge=1, le=65_536, description="images per forward pass; fewer if they have more than 4,194,304 values in total"
    )
    confidence: float = Field(gt=0.5, lt=1, description="confidence level of the accuracy's Wilson interval")
    calibration_bins: int = Field(
        ge=2, le=1000, description="number of equal-width bins of the expected calibration error"
    )
    misclassified: int = Field(ge=1, le=400, description="number of images in misclassified.png and misclassified.csv")
    corruptions: list[
        Literal["noise", "blur", "brightness", "contrast", "rotation", "translation", "jpeg", "occlusion"]
    ] = Field(
        description="corruptions of the test images, each at five strengths, under which accuracy is measured; all "
        "eight evaluate up to 2,000 test images 40 times; []: none"
    )


class PromoteParams(Section):
    model: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,100}$", description="name in MLflow's model registry: letters, digits, _ and -"
    )
    min_accuracy_low: float = Field(ge=0, le=1, description="minimum lower bound of the test accuracy's interval")
    max_calibration_error: float = Field(ge=0, le=1, description="maximum expected calibration error on the test split")
    max_latency_ms: float = Field(
        gt=0, le=60_000, description="maximum median latency of a single image on one CPU thread, milliseconds"
    )
    significance: float = Field(
        gt=0, lt=1, description="level of McNemar's test; a model significantly worse than the champion is refused"
    )


class SweepParams(Section):
    metric: Literal["validation_accuracy", "validation_loss"] = Field(
        description="validation metric that classifier sweep --search optimizes"
    )
    seed: Seed = Field(description="seed of the search")
    search: dict[str, Searched] = Field(
        description="search space of classifier sweep --search: per key low, high and log, or choices"
    )


class Params(Section):
    """The whole of params.yaml: a section per stage, then a section per command that has settings."""

    download: DownloadParams
    normalize: NormalizeParams
    train: TrainParams
    evaluate: EvaluateParams
    promote: PromoteParams
    sweep: SweepParams

    def problems(self) -> Iterator[str]:
        """Combinations of valid values that cannot be used, within sections and between them."""
        for stage, section in self:
            yield from (f"{stage}.{problem}" for problem in section.problems())
        download, normalize = self.download, self.normalize
        channels = 3 if download.dataset == "cifar10" else 1
        known: dict[str, list[Any]] = {
            "image_size": [LENET5_SIZE],
            "channels": ["auto", channels],
            "invert": [False, "auto"],
        }
        for key, allowed in {} if download.dataset == "folder" else known.items():
            if (value := getattr(normalize, key)) not in allowed:
                wrong, right = (json.dumps(each).strip('"') for each in (value, allowed[0]))
                yield f"normalize.{key}: {wrong} with download.dataset: {download.dataset}; allowed is {right}"

    def training_problems(self) -> Iterator[str]:
        """Combinations of valid values that make data which cannot be trained on."""
        normalize, train = self.normalize, self.train
        folder, size = self.download.dataset == "folder", normalize.image_size
        if folder and train.network == LENET5 and size != LENET5_SIZE:
            yield (
                f"train.network: {LENET5} with normalize.image_size: {size}; allowed is {LENET5_SIZE}, or another "
                "network, such as resnet18"
            )
        if train.pretrained == "imagenet" and (train.network == LENET5 or set(train.network) & set("/:")):
            yield (
                f"train.pretrained: imagenet with train.network: {train.network}; allowed are names of "
                "torchvision.models (docs/networks.md), or train.pretrained: file"
            )
        if train.keep.weights != "last" and normalize.validation_fraction == 0 and not folder:
            yield (
                f"train.keep.weights: {train.keep.weights} with normalize.validation_fraction: 0.0; allowed is a "
                "fraction above 0, or keep.weights: last"
            )

    def search_problems(self) -> Iterator[str]:
        """Values of the search space that are not allowed in these params, which have no problems of their own."""
        for key, values in self.sweep.search.items():
            for value in values.choices if isinstance(values, Choices) else (values.low, values.high):
                try:
                    self._check(key, value)
                except ValueError as error:
                    yield f"sweep.search: {error}"

    @property
    def own_files(self) -> list[str]:
        """The user's images and weights: paths in the project, or absolute ones."""
        return [self.download.folder, self.train.pretrained_file]

    def flat(self) -> dict[str, Any]:
        """Return the stages' params as `{"train.epochs": 2, ...}`, named as in DVC and MLflow.

        Settings of commands are not included: they do not change the results of a run.
        """
        return {key: value for stage in STAGES for key, value in items(getattr(self, stage), f"{stage}.")}

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that differ if a stage's params do."""
        return hashlib.sha256(json.dumps(self.flat(), sort_keys=True).encode()).hexdigest()[:16]

    def override(self, changes: Mapping[str, Any]) -> Params:
        """Return a copy with `changes`, such as `{"train.epochs": 2}`.

        Raises UserError with the key, the value and what is allowed.
        """
        tree = self.model_dump()
        for key, value in changes.items():
            self._find(key)
            put(tree, key, value)
        found = _validated(tree)
        if isinstance(found, Params):
            return found
        raise UserError("; ".join(found))

    def _check(self, key: str, value: Any) -> None:
        """Like `override`, for a single value of a valid section."""
        self._find(key)
        stage, _, name = key.partition(".")
        section: Section = getattr(self, stage)
        put(tree := section.model_dump(), name, value)
        try:
            changed = self.model_copy(update={stage: type(section).model_validate(tree)})
            found = [*changed.problems(), *changed.training_problems()]
        except ValidationError as error:
            found = describe(error, Params, RENAMED, BEFORE, within=(stage,))
        if found:
            raise UserError("; ".join(found))

    def _find(self, key: str) -> None:
        """Raise UserError unless `key` is the key of a stage's value."""
        if key not in (known := self.flat()):
            stage = key.partition(".")[0]
            near = [name for name in known if name.startswith(f"{stage}.")] or known
            raise UserError(f"{key}: {unknown(key, key, near, RENAMED)}")


def upgraded(texts: Mapping[str, str]) -> dict[str, str]:
    """Convert a run's params, `{"train.epochs": "2", ...}`, to the keys of this version."""
    return {key: str(value) for key, value in _upgraded(texts).items()}


def upgraded_sections(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the params sections of a dvc.lock to the keys of this version."""
    tree: dict[str, Any] = {}
    for key, value in _upgraded(dict(_leaves(sections, set(keys(Params, ""))))).items():
        put(tree, key, value)
    return tree


def _upgraded(flat: Mapping[str, Any]) -> dict[str, Any]:
    if not flat:  # a run without params, such as a sweep
        return {}
    return BEFORE | {(name := RENAMED.get(key, key)): flat.get(name, value) for key, value in flat.items()}


def _leaves(section: Mapping[str, Any], known: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping) and f"{prefix}{name}" not in known:
            yield from _leaves(value, known, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def load_params(path: Path, *, for_training: bool = True) -> Params:
    """Read and validate params.yaml.

    Raises UserError, which lists every problem with its key, its value and what is allowed. Unless `for_training`,
    problems of training alone are printed: the data can be made and looked at.
    """
    params = parse_params(read_text(path), path, for_training=for_training)
    for problem in params.training_problems():
        print(f"before training, change {path}: {problem}", file=sys.stderr)
    return params


def parse_params(text: str, path: Path, *, for_training: bool = True) -> Params:
    """Like `load_params`, from the file's text; `path` is used in messages."""
    problems = _validated(parse_yaml(text, path), for_training=for_training)
    if isinstance(problems, Params):
        return problems
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    raise UserError("\n  ".join([f"{path} has {count}:", *problems[:SHOWN], *more]))


def _validated(tree: Any, *, for_training: bool = True) -> Params | list[str]:
    """The params, or all their problems: of single values; if there are none, of combinations; then of the search."""
    try:
        params = Params.model_validate(tree)
    except ValidationError as error:
        return describe(error, Params, RENAMED, BEFORE)
    problems, of_training = list(params.problems()), list(params.training_problems())
    if problems or (for_training and of_training):
        return problems + of_training
    return ([] if of_training else list(params.search_problems())) or params
