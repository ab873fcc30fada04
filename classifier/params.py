"""params.yaml: one frozen, strict model per stage, and every problem in the file reported at once.

Values live in params.yaml alone; no default hides here. `dvc.yaml` tracks each section as a whole.
"""

from __future__ import annotations

import reprlib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Device = Literal["auto", "cpu", "cuda", "mps"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DownloadParams(Section):
    dataset: Literal["digits", "mnist", "fashion_mnist", "kmnist", "cifar10"] = Field(
        description="which images to train on; digits needs no network"
    )
    mirror: str | None = Field(
        min_length=1,
        description="base address or folder tried before the official mirrors; DATA_MIRROR goes before it",
    )
    deadline_s: float = Field(gt=0, le=86400, description="seconds that one file may take from one mirror")
    retries: int = Field(ge=0, le=10, description="further tries per mirror after a broken connection")


class NormalizeParams(Section):
    seed: Seed = Field(description="seed of the split by class")
    validation_fraction: Fraction = Field(
        description="share of the training images of each class held out for validation, 0 for none"
    )
    test_fraction: float = Field(
        gt=0, lt=1, description="share of the images of each class held out for the test, for sets without a test split"
    )
    mean: list[Annotated[float, Field(ge=0, le=1)]] | None = Field(
        description="mean per channel on pixels scaled to 0..1, null to compute it on the training split"
    )
    std: list[Annotated[float, Field(gt=0, le=10)]] | None = Field(
        description="standard deviation per channel on pixels scaled to 0..1, null to compute it on the training split"
    )

    @model_validator(mode="after")
    def _same_channels(self) -> Self:
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels, std {len(self.std)}: allowed is the same number")
        return self


class TrainParams(Section):
    seed: Seed = Field(description="seed of initial weights, order of images and augmentation")
    replicas: int = Field(ge=1, le=1024, description="models trained with the seeds from seed on, 1 for a single one")
    epochs: int = Field(ge=1, le=100_000, description="passes over the training split")
    batch_size: int = Field(
        ge=1, le=65_536, description="images per optimizer step; an epoch's last batch may be smaller"
    )
    optimizer: Literal["sgd", "adamw"] = Field(description="sgd (with momentum) or adamw")
    learning_rate: float = Field(gt=0, le=100, description="peak learning rate")
    momentum: Fraction = Field(description="sgd: momentum")
    nesterov: bool = Field(description="sgd: Nesterov's form of momentum")
    weight_decay: float = Field(ge=0, le=10, description="L2 penalty of sgd, decoupled decay of adamw")
    schedule: Literal["constant", "one_cycle", "cosine"] = Field(
        description="learning rate over the steps: constant, one_cycle (rise, then fall) or cosine (fall alone)"
    )
    warmup_fraction: Fraction = Field(description="one_cycle: share of the steps in which the learning rate rises")
    label_smoothing: Fraction = Field(description="share of the target's probability spread over all classes")
    shift: int = Field(ge=0, le=16, description="augmentation: largest shift of a batch in each direction, pixels")
    rotation: float = Field(ge=0, le=180, description="augmentation: largest rotation of a batch either way, degrees")
    scale: float = Field(ge=0, le=0.9, description="augmentation: largest change of size, 0.1 for 0.9 to 1.1")
    log_every: int = Field(ge=1, description="optimizer steps in one window of the running loss")
    device: Device = Field(description="auto takes cuda, else mps, else cpu")
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        description="float32, tf32 (cuda: TF32 matrix products) or bfloat16 (autocast; weights stay float32)"
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: true with momentum: 0.0; allowed is a momentum above 0, or nesterov: false")
        return self


class EvaluateParams(Section):
    device: Device = Field(description="as train.device")
    batch_size: int = Field(ge=1, le=65_536, description="images per forward pass")
    confidence: float = Field(gt=0.5, lt=1, description="level of the accuracy's Wilson interval")
    calibration_bins: int = Field(ge=2, le=1000, description="equal-width bins of the expected calibration error")
    mistakes: int = Field(ge=1, le=400, description="misclassified images shown in the picture")


class Params(Section):
    """The whole of params.yaml: a section per stage."""

    download: DownloadParams
    normalize: NormalizeParams
    train: TrainParams
    evaluate: EvaluateParams

    def flat(self) -> dict[str, Any]:
        """`{"train.epochs": 2, ...}`, the names that DVC and MLflow show."""
        return {f"{section}.{key}": value for section, values in self for key, value in values}


def load_params(path: Path) -> Params:
    """Read and check the whole file; ValueError lists every problem with key, value and what is allowed."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run in the project's root") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    return parse_params(text, path)


def parse_params(text: str, path: Path) -> Params:
    """As load_params, from the file's text; `path` is for the message."""
    try:
        # YAML 1.2, as DVC reads it: 1e-3 is a number; tags that would build objects are refused.
        tree = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).partition("To suppress this check")[0].split())
        raise ValueError(f"{path} is not valid YAML: {reason[:500]}") from None
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise ValueError("\n  ".join([f"{path} has {count}:", *problems]))


def _describe(problem: Any) -> str:
    """One line: key, value, what is allowed."""
    location = [part for part in problem["loc"] if part != "function-after"]
    key = ".".join(map(str, location)) or "the file"
    section: Any = Params
    for part in location[:-1]:
        section = (
            section.model_fields[part].annotation if _is_section(section) and part in section.model_fields else None
        )
    fields = section.model_fields if _is_section(section) else {}
    name = str(location[-1]) if location else ""
    meaning = fields[name].description if name in fields else None
    if problem["type"] == "extra_forbidden":
        close = get_close_matches(name, fields, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{key}: {reprlib.repr(problem['input'])}: unknown key; {hint}allowed are {', '.join(fields)}"
    if problem["type"] == "missing":
        return f"{key} is missing" + (f": {meaning}" if meaning else "")
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{key}: {_shown(problem['input'])} should hold keys and values"
    allowed = problem["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    if problem["type"] == "value_error":
        return f"{key}: {allowed}"
    return f"{key}: {_shown(problem['input'])} {allowed}" + (f" ({meaning})" if meaning else "")


def _shown(value: Any) -> str:
    """As YAML writes it, cut short."""
    return "null" if value is None else reprlib.repr(value)


def _is_section(model: Any) -> bool:
    return isinstance(model, type) and issubclass(model, Section)
