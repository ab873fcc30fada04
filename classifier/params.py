"""The schema of params.yaml: one frozen, strict model per section. Validation reports every problem at once.

All values are in params.yaml; the models have no defaults. `dvc.yaml` tracks each section as a whole.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scanner import Scanner, ScannerError

from classifier.errors import UserError
from classifier.project.files import read_file

Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Device = Literal["auto", "cpu", "cuda", "mps"]
Arithmetic = Literal["portable", "native"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
STAGES = ("download", "normalize", "train", "evaluate")  # of dvc.yaml, in its order
LARGEST = 1 << 15  # bytes; params.yaml has about 2,500, and no text of this size takes the parser over a second
DEEPEST = 20  # nesting levels; params.yaml has four
SHOWN = 50  # problems listed in one message
WRITTEN = reprlib.Repr()
WRITTEN.maxlevel = 2  # nested YAML aliases grow exponentially: six levels of six references are 46,656 items

# Runs, dvc.lock and users' files hold params of earlier versions. A key whose meaning changes gets a new name. A new
# key is listed in BEFORE with the value that keeps the behaviour of versions without it.
RENAMED = {"train.replicas": "train.seeds"}  # old name -> current name
BEFORE = {  # new key -> value
    "train.arithmetic": "native",
    "train.parts": 1,
    "train.processes": "auto",
    "evaluate.arithmetic": "native",
}


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DownloadParams(Section):
    dataset: Literal["digits", "mnist", "fashion_mnist", "kmnist", "cifar10"] = Field(
        description="data set to train on; digits needs no network"
    )
    mirror: str | None = Field(
        min_length=1,
        description="base address or folder to try before the official mirrors; DATA_MIRROR takes precedence",
    )
    deadline_s: float = Field(gt=0, le=86400, description="time limit for one file from one mirror, seconds")
    retries: int = Field(ge=0, le=10, description="retries per mirror after a broken connection")


class NormalizeParams(Section):
    seed: Seed = Field(description="seed of the stratified split")
    validation_fraction: Fraction = Field(
        description="fraction of each class's training images held out for validation; 0 disables validation"
    )
    test_fraction: float = Field(
        gt=0, lt=1, description="fraction of each class's images held out for testing, if the data has no test split"
    )
    mean: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)] | None = Field(
        description="mean per channel of pixels scaled to 0..1; null computes it from the training split"
    )
    std: Annotated[list[Annotated[float, Field(gt=0, le=10)]], Field(min_length=1)] | None = Field(
        description="standard deviation per channel of pixels scaled to 0..1; null computes it from the training split"
    )

    @model_validator(mode="after")
    def _same_channels(self) -> Self:
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise UserError(f"mean has {len(self.mean)} channels, std {len(self.std)}: allowed is the same number")
        return self


Count = Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]


class TrainParams(Section):
    seed: Seed = Field(description="seed of the initial weights, the order of the images and the augmentation")
    seeds: int = Field(ge=1, le=1024, description="number of models to train, with seeds seed, seed + 1, and so on")
    epochs: int = Field(ge=1, le=100_000, description="passes over the training split")
    batch_size: int = Field(
        ge=1, le=65_536, description="images per optimizer step; the last batch of an epoch may be smaller"
    )
    optimizer: Literal["sgd", "adamw", "muon"] = Field(
        description="sgd (with momentum), adamw, or muon (orthogonalized momentum; adamw for biases)"
    )
    learning_rate: float = Field(gt=0, le=100, description="peak learning rate")
    momentum: Fraction = Field(description="sgd and muon: momentum")
    nesterov: bool = Field(description="sgd and muon: use Nesterov momentum")
    weight_decay: float = Field(ge=0, le=10, description="sgd: L2 penalty; adamw and muon: decoupled weight decay")
    schedule: Literal["constant", "one_cycle", "cosine"] = Field(
        description="learning rate schedule: constant, one_cycle (warm-up, then decay) or cosine (decay)"
    )
    warmup_fraction: Fraction = Field(description="one_cycle: fraction of the steps used for warm-up")
    label_smoothing: Fraction = Field(description="fraction of the target probability distributed over all classes")
    shift: int = Field(ge=0, le=16, description="augmentation: maximum shift of a batch in each direction, pixels")
    rotation: float = Field(
        ge=0, le=180, description="augmentation: maximum rotation of a batch in either direction, degrees"
    )
    scale: float = Field(ge=0, le=0.9, description="augmentation: maximum change of size; 0.1 scales by 0.9 to 1.1")
    log_every: int = Field(ge=1, description="optimizer steps per window of the running loss")
    checkpoint_every: int = Field(
        ge=0, description="optimizer steps between checkpoints, besides one per epoch; 0 disables checkpoints"
    )
    device: Device = Field(description="auto selects cuda if available, then mps, then cpu")
    arithmetic: Arithmetic = Field(
        description="on a CPU: portable (the same bits on every x86-64 processor with AVX2) or native (its own kernels)"
    )
    parts: Count = Field(description="parts of a batch, each computed by one thread; auto: 2 on a CPU, else 1")
    processes: Count = Field(description="processes that share the parts on a CPU (Linux); auto: one per core")
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        description="float32, tf32 (TF32 matrix products on cuda) or bfloat16 (autocast; weights stay float32)"
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.optimizer != "adamw" and self.nesterov and self.momentum == 0:
            raise UserError("nesterov: true with momentum: 0.0; allowed is a momentum above 0, or nesterov: false")
        return self


class EvaluateParams(Section):
    device: Device = Field(description="like train.device")
    arithmetic: Arithmetic = Field(description="like train.arithmetic")
    batch_size: int = Field(ge=1, le=65_536, description="images per forward pass")
    confidence: float = Field(gt=0.5, lt=1, description="confidence level of the accuracy's Wilson interval")
    calibration_bins: int = Field(
        ge=2, le=1000, description="number of equal-width bins of the expected calibration error"
    )
    mistakes: int = Field(ge=1, le=400, description="number of images in misclassified.png")


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


class Range(Section):
    low: int | float = Field(description="smallest value")
    high: int | float = Field(description="largest value")
    log: bool = Field(description="sample on a logarithmic scale")

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if not self.low < self.high:
            raise UserError(f"low: {self.low} with high: {self.high}; allowed is a low below high")
        if self.log and self.low <= 0:
            raise UserError(f"low: {self.low} with log: true; allowed is a low above 0, or log: false")
        return self


class Choices(Section):
    choices: list[bool | int | float | str | None] = Field(min_length=1, description="values to choose from")


SEARCHED: dict[str | int, type[Section]] = {
    "Range": Range,
    "Choices": Choices,
}  # by pydantic's tag


def _searched_tag(value: Any) -> str:
    choices = "choices" in value if isinstance(value, dict) else isinstance(value, Choices)
    return "Choices" if choices else "Range"


class SweepParams(Section):
    metric: Literal["validation_accuracy", "validation_loss"] = Field(
        description="validation metric that classifier sweep --search optimizes"
    )
    seed: Seed = Field(description="seed of the search")
    search: dict[
        str,
        Annotated[
            Annotated[Range, Tag("Range")] | Annotated[Choices, Tag("Choices")],
            Discriminator(_searched_tag),
        ],
    ] = Field(description="search space of classifier sweep --search: per key low, high and log, or choices")


class Params(Section):
    """The whole of params.yaml: a section per stage, then a section per command that has settings."""

    download: DownloadParams
    normalize: NormalizeParams
    train: TrainParams
    evaluate: EvaluateParams
    promote: PromoteParams
    sweep: SweepParams

    @model_validator(mode="after")
    def _search_is_allowed(self) -> Self:
        for key, values in self.sweep.search.items():
            for value in values.choices if isinstance(values, Choices) else (values.low, values.high):
                try:
                    self._check(key, value)
                except ValueError as error:
                    raise UserError(f"sweep.search: {error}") from None
        return self

    def flat(self) -> dict[str, Any]:
        """Return the stages' params as `{"train.epochs": 2, ...}`, named as in DVC and MLflow.

        Settings of commands are left out: they do not change the results of a run.
        """
        return {f"{stage}.{key}": value for stage in STAGES for key, value in getattr(self, stage)}

    def override(self, values: Mapping[str, Any]) -> Params:
        """Return a copy with `values`, such as `{"train.epochs": 2}`; UserError names key, value, what is allowed."""
        tree = self.model_dump()
        for key, value in values.items():
            stage, name = self._parts(key)
            tree[stage][name] = value
        try:
            return Params.model_validate(tree)
        except ValidationError as error:
            raise UserError("; ".join(map(_describe, error.errors()))) from None

    def _check(self, key: str, value: Any) -> None:
        """Like `override`, for a single value of a valid section."""
        stage, name = self._parts(key)
        section: Section = getattr(self, stage)
        try:
            type(section).model_validate(section.model_dump() | {name: value})
        except ValidationError as error:
            problems = [{**problem, "loc": (stage, *problem["loc"])} for problem in error.errors()]
            raise UserError("; ".join(map(_describe, problems))) from None

    def _parts(self, key: str) -> list[str]:
        if key not in (known := self.flat()):
            stage = key.partition(".")[0]
            raise UserError(
                f"{key}: {_unknown(key, key, [name for name in known if name.startswith(f'{stage}.')] or known)}"
            )
        return key.split(".")


def upgraded(texts: Mapping[str, str]) -> dict[str, str]:
    """Convert a run's params, `{"train.epochs": "2", ...}`, to the keys of this version."""
    return {key: str(value) for key, value in _upgraded(texts).items()}


def upgraded_sections(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the params sections of a dvc.lock to the keys of this version."""
    tree: dict[str, Any] = {}
    for key, value in _upgraded(dict(_leaves(sections))).items():
        *above, name = key.split(".")
        place = tree
        for section in above:
            place = place.setdefault(section, {})
        place[name] = value
    return tree


def _upgraded(flat: Mapping[str, Any]) -> dict[str, Any]:
    if not flat:  # a run without params, such as a sweep
        return {}
    return BEFORE | {(name := RENAMED.get(key, key)): flat.get(name, value) for key, value in flat.items()}


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def load_params(path: Path) -> Params:
    """Read and validate params.yaml. UserError lists every problem with its key, its value and what is allowed."""
    try:
        text = read_file(path, LARGEST).decode("utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run in the project's root") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None
    return parse_params(text, path)


def parse_params(text: str, path: Path) -> Params:
    """Like `load_params`, from the file's text; `path` is used in messages."""
    try:
        # YAML 1.2, like DVC: 1e-3 is a number. The safe loader rejects tags that build objects.
        yaml = YAML(typ="safe", pure=True)
        yaml.Scanner = _Scanner
        tree = yaml.load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).partition("To suppress this check")[0].split())
        raise UserError(f"{path} is not valid YAML: {reason[:500]}") from None
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        found = error.errors()
    renamed = {RENAMED.get(".".join(map(str, problem["loc"]))) for problem in found}  # also reported as missing
    problems = [_describe(problem) for problem in found if ".".join(map(str, problem["loc"])) not in renamed]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    raise UserError("\n  ".join([f"{path} has {count}:", *problems[:SHOWN], *more]))


class _Scanner(Scanner):
    """Rejects deep nesting, whose parsing time is quadratic: 4 to 14 s for a file full of brackets."""

    def fetch_more_tokens(self) -> Any:
        if self.flow_level + len(self.indents) > DEEPEST:
            raise ScannerError(None, None, f"nested deeper than {DEEPEST} levels", self.reader.get_mark())
        return super().fetch_more_tokens()


def _describe(problem: Any) -> str:
    """Describe a problem in one line: key, value, what is allowed."""
    section: Any = Params
    path = [part for part in problem["loc"] if part != "function-after"]
    for part in path[:-1]:
        known = _is_section(section) and part in section.model_fields
        section = section.model_fields[part].annotation if known else SEARCHED.get(part)
    location = [part for part in path if part not in SEARCHED]
    key = ".".join(map(str, location)) or "the file"
    fields = section.model_fields if _is_section(section) else {}
    name = str(location[-1]) if location else ""
    meaning = fields[name].description if name in fields else None
    if problem["type"] == "extra_forbidden":
        return f"{key:.200}: {_shown(problem['input'])}: {_unknown(key, name, fields)}"
    if problem["type"] == "missing":
        before = f"; {_shown(BEFORE[key])} does what versions without it did" if key in BEFORE else ""
        return f"{key} is missing" + (f": {meaning}" if meaning else "") + before
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{key}: {_shown(problem['input'])} should hold keys and values"
    allowed = problem["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    if problem["type"] == "value_error":
        return f"{key}: {allowed}" if location else allowed
    return f"{key}: {_shown(problem['input'])} {allowed}" + (f" ({meaning})" if meaning else "")


def _shown(value: Any) -> str:
    """Format a value as in YAML, truncated."""
    try:
        return "null" if value is None else f"{WRITTEN.repr(value):.200}"  # aliases can make it huge
    except ValueError:  # Python limits the length of printed integers
        return f"a number of {value.bit_length():,} bits"


def _unknown(key: str, name: str, allowed: Iterable[str]) -> str:
    """Describe an unknown `name`, `key` in full, and suggest the closest allowed name."""
    if key in RENAMED:
        return f"renamed to {RENAMED[key]}"
    names = list(allowed)
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown key; {hint}allowed are {', '.join(names)}"


def _is_section(model: Any) -> bool:
    return isinstance(model, type) and issubclass(model, Section)
