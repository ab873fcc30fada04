"""params.yaml: one frozen, strict model per section, and every problem in the file reported at once.

Values live in params.yaml alone; no default hides here. `dvc.yaml` tracks each section as a whole.
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
Seed = Annotated[int, Field(ge=0, lt=2**32)]
STAGES = ("download", "normalize", "train", "evaluate")  # of dvc.yaml, in its order
LARGEST = 1 << 15  # bytes of params.yaml, which has some 2,500: no text so short takes the parser over a second
DEEPEST = 20  # levels of params.yaml, which has four
SHOWN = 50  # problems
WRITTEN = reprlib.Repr()
WRITTEN.maxlevel = 2  # six references in each of six lists, and so on, would be 46,656

# Params of earlier versions stand in runs, in dvc.lock and in people's files. A key whose meaning changes gets another
# name; a new key gets, here, the value with which this version does what versions without it did.
RENAMED = {"train.replicas": "train.seeds"}  # earlier name -> today's
BEFORE: dict[str, Any] = {}  # new key -> value


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
    mean: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)] | None = Field(
        description="mean per channel on pixels scaled to 0..1, null to compute it on the training split"
    )
    std: Annotated[list[Annotated[float, Field(gt=0, le=10)]], Field(min_length=1)] | None = Field(
        description="standard deviation per channel on pixels scaled to 0..1, null to compute it on the training split"
    )

    @model_validator(mode="after")
    def _same_channels(self) -> Self:
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise UserError(f"mean has {len(self.mean)} channels, std {len(self.std)}: allowed is the same number")
        return self


class TrainParams(Section):
    seed: Seed = Field(description="seed of initial weights, order of images and augmentation")
    seeds: int = Field(ge=1, le=1024, description="models trained with the seeds from seed on, 1 for a single one")
    epochs: int = Field(ge=1, le=100_000, description="passes over the training split")
    batch_size: int = Field(
        ge=1, le=65_536, description="images per optimizer step; an epoch's last batch may be smaller"
    )
    optimizer: Literal["sgd", "adamw", "muon"] = Field(
        description="sgd (with momentum), adamw, or muon: momentum made orthogonal, adamw for biases"
    )
    learning_rate: float = Field(gt=0, le=100, description="peak learning rate")
    momentum: Fraction = Field(description="sgd and muon: momentum")
    nesterov: bool = Field(description="sgd and muon: Nesterov's form of momentum")
    weight_decay: float = Field(ge=0, le=10, description="L2 penalty of sgd, decoupled decay of adamw and muon")
    schedule: Literal["constant", "one_cycle", "cosine"] = Field(
        description="learning rate over the steps: constant, one_cycle (rise, then fall) or cosine (fall alone)"
    )
    warmup_fraction: Fraction = Field(description="one_cycle: share of the steps in which the learning rate rises")
    label_smoothing: Fraction = Field(description="share of the target's probability spread over all classes")
    shift: int = Field(ge=0, le=16, description="augmentation: largest shift of a batch in each direction, pixels")
    rotation: float = Field(ge=0, le=180, description="augmentation: largest rotation of a batch either way, degrees")
    scale: float = Field(ge=0, le=0.9, description="augmentation: largest change of size, 0.1 for 0.9 to 1.1")
    log_every: int = Field(ge=1, description="optimizer steps in one window of the running loss")
    checkpoint_every: int = Field(
        ge=0, description="optimizer steps between checkpoints, beside those at each epoch's end; 0 turns them off"
    )
    device: Device = Field(description="auto takes cuda, else mps, else cpu")
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        description="float32, tf32 (cuda: TF32 matrix products) or bfloat16 (autocast; weights stay float32)"
    )

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.optimizer != "adamw" and self.nesterov and self.momentum == 0:
            raise UserError("nesterov: true with momentum: 0.0; allowed is a momentum above 0, or nesterov: false")
        return self


class EvaluateParams(Section):
    device: Device = Field(description="as train.device")
    batch_size: int = Field(ge=1, le=65_536, description="images per forward pass")
    confidence: float = Field(gt=0.5, lt=1, description="level of the accuracy's Wilson interval")
    calibration_bins: int = Field(ge=2, le=1000, description="equal-width bins of the expected calibration error")
    mistakes: int = Field(ge=1, le=400, description="misclassified images shown in the picture")


class PromoteParams(Section):
    model: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,100}$", description="name in MLflow's model registry: letters, digits, _ and -"
    )
    min_accuracy_low: float = Field(ge=0, le=1, description="least lower bound of the test accuracy's interval")
    max_calibration_error: float = Field(ge=0, le=1, description="largest expected calibration error on the test")
    max_latency_ms: float = Field(
        gt=0, le=60_000, description="largest median time of one image alone, milliseconds on one thread of this CPU"
    )
    significance: float = Field(
        gt=0, lt=1, description="level of McNemar's test: refused when worse than the champion with a p-value below it"
    )


class Range(Section):
    low: int | float = Field(description="smallest value")
    high: int | float = Field(description="largest value")
    log: bool = Field(description="true to try as many values between 0.01 and 0.1 as between 0.1 and 1")

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if not self.low < self.high:
            raise UserError(f"low: {self.low} with high: {self.high}; allowed is a low below high")
        if self.log and self.low <= 0:
            raise UserError(f"low: {self.low} with log: true; allowed is a low above 0, or log: false")
        return self


class Choices(Section):
    choices: list[bool | int | float | str | None] = Field(min_length=1, description="the values to choose from")


SEARCHED: dict[str | int, type[Section]] = {"Range": Range, "Choices": Choices}  # by the tag that pydantic shows


def _searched_tag(value: Any) -> str:
    choices = "choices" in value if isinstance(value, dict) else isinstance(value, Choices)
    return "Choices" if choices else "Range"


class SweepParams(Section):
    metric: Literal["validation_accuracy", "validation_loss"] = Field(
        description="what classifier sweep --search improves; what the test split says may not choose a model"
    )
    seed: Seed = Field(description="seed of the search")
    search: dict[
        str,
        Annotated[
            Annotated[Range, Tag("Range")] | Annotated[Choices, Tag("Choices")],
            Discriminator(_searched_tag),
        ],
    ] = Field(description="what classifier sweep --search varies: low, high and log of a key, or its choices")


class Params(Section):
    """The whole of params.yaml: a section per stage, then one for each command that has settings."""

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
        """`{"train.epochs": 2, ...}`, the names that DVC and MLflow show, of the stages alone.

        A command's settings have no part in what a run made: other limits of promotion are no other experiment.
        """
        return {f"{stage}.{key}": value for stage in STAGES for key, value in getattr(self, stage)}

    def override(self, values: Mapping[str, Any]) -> Params:
        """These params with others in their place, `{"train.epochs": 2, ...}`; UserError names key, value, allowed."""
        tree = self.model_dump()
        for key, value in values.items():
            stage, name = self._parts(key)
            tree[stage][name] = value
        try:
            return Params.model_validate(tree)
        except ValidationError as error:
            raise UserError("; ".join(map(_describe, error.errors()))) from None

    def _check(self, key: str, value: Any) -> None:
        """As override for a single value, within a section that is valid already."""
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
    """The params of a run, `{"train.epochs": "2", ...}`, as this version would have recorded them."""
    return {key: str(value) for key, value in _upgraded(texts).items()}


def upgraded_sections(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The stages' sections of params.yaml, as dvc.lock has them, as this version would have them."""
    tree: dict[str, Any] = {}
    for key, value in _upgraded(dict(_leaves(sections))).items():
        *above, name = key.split(".")
        place = tree
        for section in above:
            place = place.setdefault(section, {})
        place[name] = value
    return tree


def _upgraded(flat: Mapping[str, Any]) -> dict[str, Any]:
    if not flat:  # of a run without params, such as a sweep
        return {}
    return BEFORE | {(name := RENAMED.get(key, key)): flat.get(name, value) for key, value in flat.items()}


def _leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def load_params(path: Path) -> Params:
    """Read and check the whole file; UserError lists every problem with key, value and what is allowed."""
    try:
        text = read_file(path, LARGEST).decode("utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run in the project's root") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None
    return parse_params(text, path)


def parse_params(text: str, path: Path) -> Params:
    """As load_params, from the file's text; `path` is for messages."""
    try:
        # YAML 1.2, as DVC reads it: 1e-3 is a number; tags that would build objects are refused.
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
    renamed = {RENAMED.get(".".join(map(str, problem["loc"]))) for problem in found}  # are missing under today's name
    problems = [_describe(problem) for problem in found if ".".join(map(str, problem["loc"])) not in renamed]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    raise UserError("\n  ".join([f"{path} has {count}:", *problems[:SHOWN], *more]))


class _Scanner(Scanner):
    """Refuses deep nesting: with each bracket the parser visits all open ones, 4 to 14 s for a file full of them."""

    def fetch_more_tokens(self) -> Any:
        if self.flow_level + len(self.indents) > DEEPEST:
            raise ScannerError(None, None, f"nested deeper than {DEEPEST} levels", self.reader.get_mark())
        return super().fetch_more_tokens()


def _describe(problem: Any) -> str:
    """One line: key, value, what is allowed."""
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
    """As YAML writes it, cut short."""
    try:
        return "null" if value is None else f"{WRITTEN.repr(value):.200}"  # aliases make it millions
    except ValueError:  # Python does not print integers of this length
        return f"a number of {value.bit_length():,} bits"


def _unknown(key: str, name: str, allowed: Iterable[str]) -> str:
    """Of a name, `key` in full, that is not among those allowed; says which one was perhaps meant."""
    if key in RENAMED:
        return f"renamed to {RENAMED[key]}"
    names = list(allowed)
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown key; {hint}allowed are {', '.join(names)}"


def _is_section(model: Any) -> bool:
    return isinstance(model, type) and issubclass(model, Section)
