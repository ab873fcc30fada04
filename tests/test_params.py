from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from classifier import params as params_module
from classifier.params import (
    STAGES,
    AugmentParams,
    Params,
    data_name,
    load_params,
    parse_params,
    upgraded,
    upgraded_sections,
)
from classifier.schema.section import is_section
from tests.conftest import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def changed(tmp_path: Path, *replacements: tuple[str, str]) -> Path:
    text = TEXT
    for before, after in replacements:
        assert before in text
        text = text.replace(before, after, 1)
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problem_of(path: Path) -> str:
    with pytest.raises(ValueError, match=r"params\.yaml") as caught:
        load_params(path)
    return str(caught.value)


def test_every_value_of_the_file_is_read():
    params = load_params(ROOT / "params.yaml")
    tree = YAML(typ="safe").load(TEXT)
    assert params.model_dump() == tree
    flat = {f"{stage}.{key}": value for stage in STAGES for key, value in tree[stage].items()}
    for section in ("train.augment", "train.keep"):
        flat |= {f"{section}.{key}": value for key, value in flat.pop(section).items()}
    assert params.flat() == flat


def test_the_file_fits_on_a_screen_or_two():
    assert len(TEXT.splitlines()) <= 80


def test_the_stages_sections_are_those_that_dvc_tracks():
    """A command's settings, such as the limits of promotion, make no stage run again and no other experiment."""
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    del stages["pretrained"]  # which has no section of its own
    assert tuple(stages) == STAGES
    name = [f"download.{key}" for key in ("dataset", "folder", "address")]  # of the data set, on the evaluation's page
    assert [stage["params"] for stage in stages.values()] == [*([each] for each in STAGES[:-1]), ["evaluate", *name]]


def test_every_field_has_a_description_and_no_default():
    sections = [field.annotation for field in Params.model_fields.values()]
    for section in sections:  # which grows
        for name, field in section.model_fields.items():
            assert field.is_required(), name
            if is_section(field.annotation):
                sections.append(field.annotation)
            else:
                assert field.description, name
    assert AugmentParams in sections


def test_all_problems_are_in_one_message_each_with_key_value_and_what_is_allowed(tmp_path):
    message = problem_of(
        changed(
            tmp_path,
            ("dataset: digits", "dataset: imagenet"),
            ("deadline_s: 600", "deadline_s: 0"),
            ("validation_fraction: 0.1", "validation_fractoin: 0.1"),
            ("mean: null", "mean: [0.5, x]"),
            ("  epochs: 20\n", ""),
            ("batch_size: 32", "batch_size: '32'"),
            ("optimizer: sgd", "optimizer: adam"),
            ("learning_rate: 0.05", "learning_rate: .nan"),
            ("nesterov: true", "nesterov: 1"),
            ("confidence: 0.95", "confidence: 95"),
        )
    )
    lines = message.splitlines()
    assert lines[0].endswith("params.yaml has 11 problems:")
    for key, *parts in [
        ("download.dataset", "'imagenet'", "'digits', 'mnist', 'fashion_mnist', 'kmnist', 'cifar10' or 'folder'"),
        ("download.deadline_s", " 0 ", "greater than 0", "seconds"),
        ("normalize.validation_fractoin", "unknown key", "did you mean validation_fraction?", "allowed are seed,"),
        ("normalize.validation_fraction", "is missing", "fraction of each class's training images"),
        ("normalize.mean.1", "'x'", "valid number"),
        ("train.epochs", "is missing", "passes over the training split"),
        ("train.batch_size", "'32'", "valid integer"),
        ("train.optimizer", "'adam'", "'sgd', 'adamw' or 'muon'"),
        ("train.learning_rate", "nan", "finite number"),
        ("train.nesterov", " 1 ", "valid boolean"),
        ("evaluate.confidence", " 95 ", "less than 1"),
    ]:
        (line,) = [line for line in lines if line.split()[0].rstrip(":") == key]
        for part in parts:
            assert part in line, line


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("retries: 2", "retries: 2.5", "download.retries"),
        ("retries: 2", "retries: -1", "download.retries"),
        ("retries: 2", "retries: null", "download.retries"),
        ("retries: 2", "retries: true", "download.retries"),
        ("mirror: null", "mirror: ''", "download.mirror"),
        ("test_fraction: 0.2", "test_fraction: 0", "normalize.test_fraction"),
        ("test_fraction: 0.2", "test_fraction: 1", "normalize.test_fraction"),
        ("seed: 0", "seed: 4294967296", "normalize.seed"),
        ("std: null", "std: [0]", "normalize.std.0"),
        ("std: null", "std: 0.5", "normalize.std"),
        ("std: null", "std: []", "normalize.std"),
        ("mean: null", "mean: []", "normalize.mean"),
        ("shift: 1", "shift: 257", "train.augment.shift"),
        ("label_smoothing: 0.0", "label_smoothing: 1.0", "train.label_smoothing"),
        ("learning_rate: 0.05", "learning_rate: .inf", "train.learning_rate"),
        ("log_every: 10", "log_every: 0", "train.log_every"),
        ("calibration_bins: 15", "calibration_bins: 1", "evaluate.calibration_bins"),
        ("model: classifier", "model: models:/classifier", "promote.model"),
        ("min_accuracy_low: 0.95", "min_accuracy_low: 95", "promote.min_accuracy_low"),
        ("significance: 0.05", "significance: 0", "promote.significance"),
    ],
)
def test_one_value_that_is_not_allowed(tmp_path, before, after, key):
    message = problem_of(changed(tmp_path, (before, after)))
    assert "has 1 problem:" in message
    assert message.splitlines()[1].strip().startswith(f"{key}: ")


def test_values_that_contradict_each_other_are_named(tmp_path):
    message = problem_of(changed(tmp_path, ("mean: null", "mean: [0.5]"), ("std: null", "std: [1, 1, 1]")))
    assert "mean has 1 channels, std 3" in message
    message = problem_of(changed(tmp_path, ("momentum: 0.9", "momentum: 0.0"), ("patience: null", "patience: 20")))
    assert message.endswith(
        " has 3 problems:\n"
        "  train.nesterov: true with momentum: 0.0; allowed is a momentum above 0, or nesterov: false\n"
        "  train.keep.patience: 20 with keep.weights: last; allowed is validation_loss or validation_accuracy, or "
        "patience: null\n"
        "  train.keep.patience: 20 with epochs: 20; allowed are fewer than epochs"
    )
    message = problem_of(changed(tmp_path, ("batch_size: 32", "batch_size: 1"), ("mixup: 0.0", "mixup: 0.2")))
    assert "mixup or cutmix with batch_size: 1; allowed is 2 or more" in message


def test_values_of_different_sections_that_contradict_each_other_are_named_together(tmp_path):
    """So that nobody decodes all images before a network refuses their size."""
    pretrained, weights = ("pretrained: null", "pretrained: imagenet"), ("weights: last", "weights: validation_loss")
    tf32, cpu = ("precision: float32", "precision: tf32"), ("device: auto", "device: cpu")
    none, size = ("validation_fraction: 0.1", "validation_fraction: 0.0"), ("image_size: 32", "image_size: 64")
    message = problem_of(
        changed(tmp_path, pretrained, weights, tf32, cpu, none, size, ("invert: false", "invert: true"))
    )
    assert message.endswith(
        " has 5 problems:\n"
        "  train.precision: tf32 with device: cpu; allowed is device: cuda or auto, or float32 or bfloat16\n"
        "  normalize.image_size: 64 with download.dataset: digits; allowed is 32\n"
        "  normalize.invert: true with download.dataset: digits; allowed is false\n"
        "  train.pretrained: imagenet with train.network: lenet5; allowed are names of torchvision.models "
        "(docs/networks.md), or train.pretrained: file\n"
        "  train.keep.weights: validation_loss with normalize.validation_fraction: 0.0; allowed is a fraction above 0, "
        "or keep.weights: last"
    )
    folder = ("dataset: digits", "dataset: folder")
    assert problem_of(changed(tmp_path, folder, size, none, weights)).endswith(
        " has 1 problem:\n  train.network: lenet5 with normalize.image_size: 64; allowed is 32, or another network, "
        "such as resnet18"
    )
    resnet18 = ("network: lenet5", "network: resnet18")
    load_params(changed(tmp_path, folder, size, none, weights, resnet18))
    search = ("search: {", "search: {train.network: {choices: [resnet18, lenet5]}, ")
    assert "sweep.search: train.network: lenet5 with normalize.image_size: 64; allowed is 32" in problem_of(
        changed(tmp_path, folder, size, resnet18, search)
    )


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "0.1e-2", "0.001"])
def test_a_number_with_an_exponent_is_a_number(tmp_path, number):
    assert load_params(changed(tmp_path, ("learning_rate: 0.05", f"learning_rate: {number}"))).train.learning_rate == (
        0.001
    )


def test_a_key_that_stands_twice_is_refused(tmp_path):
    message = problem_of(changed(tmp_path, ("  retries: 2\n", "  retries: 2\n  retries: 3\n")))
    assert 'duplicate key "retries"' in message


def test_a_tag_builds_no_object(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for tag in ("!!python/object/apply:os.system ['touch ran']", "!!python/name:os.system ''"):
        assert "not valid YAML" in problem_of(changed(tmp_path, ("mirror: null", f"mirror: {tag}")))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"", b"- 1", b"text", b"download: 3", b"a: [", b"\xff\xfe", b"\t a: b", b"[" * 1500]
)
def test_a_file_of_another_form_is_named(tmp_path, content):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert str(path) in problem_of(path)


@pytest.mark.parametrize("opening", ["[", "{", "[{", "{a: ", "- ", "? ", "[\n"])
@pytest.mark.parametrize("levels", [21, 2000])
def test_deep_nesting_is_refused_before_it_takes_time(tmp_path, opening, levels):
    path = tmp_path / "params.yaml"
    path.write_text(opening * levels)
    assert "nested deeper than 20 levels" in problem_of(path)
    path.write_text("".join(f"{' ' * level}a:\n" for level in range(min(levels, 250))))
    assert "nested deeper than 20 levels" in problem_of(path)


def test_references_to_references_are_not_written_out(tmp_path):
    """Six of six of six of them, shown for each of fifty problems, would take seconds."""
    lists = ["a0: &a0 [x]", *(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 10))]
    path = changed(tmp_path, ("choices: [16, 32, 64]", "choices: *a9"))
    path.write_text("\n".join([*lists, path.read_text()]))
    (line, *_) = [line for line in problem_of(path).splitlines() if "sweep.search.train.batch_size" in line]
    assert "[[...], [...], [...], [...], [...], [...], ...]" in line
    assert "[[[[" not in line


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"params\.yaml does not exist: run in the project's root"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("stage", ["download", "normalize"])
def test_a_stage_reports_all_before_any_work_without_a_traceback(tmp_path, stage):
    path = changed(tmp_path, ("batch_size: 32", "batch_size: -32"), ("misclassified: 25", "misclasified: 25"))
    outs = {"download": ["raw"], "normalize": ["raw", "normalized", "reports"]}[stage]
    arguments = [path, *(tmp_path / out for out in outs)]
    ended = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"{stage}: {path} has 3 problems:")
    for key in ("train.batch_size: -32", "evaluate.misclasified:", "evaluate.misclassified is missing"):
        assert key in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_a_renamed_key_is_one_problem_that_says_its_name_today(tmp_path):
    message = problem_of(changed(tmp_path, ("  seeds: 1 ", "  replicas: 3 ")))
    assert message.splitlines()[1:] == ["  train.replicas: 3: renamed to train.seeds"]
    with pytest.raises(ValueError, match=r"^train\.replicas: renamed to train\.seeds$"):
        load_params(ROOT / "params.yaml").override({"train.replicas": 3})


@pytest.fixture
def new_key(monkeypatch):
    monkeypatch.setattr(params_module, "BEFORE", {"train.augment.mirror": False})


def test_params_of_earlier_versions_get_todays_names_and_what_did_the_same_before(new_key):
    assert upgraded({"train.replicas": "3", "train.mean": "None"}) == {
        "train.augment.mirror": "False",
        "train.seeds": "3",
        "train.mean": "None",
    }
    # What today's code recorded, or added to an earlier run, stands.
    assert upgraded({"train.seeds": "1", "train.augment.mirror": "True"}) == {
        "train.augment.mirror": "True",
        "train.seeds": "1",
    }
    assert upgraded({"train.replicas": "3", "train.seeds": "1"})["train.seeds"] == "1"
    assert upgraded({}) == {}


@pytest.mark.parametrize(
    ("dataset", "folder", "address", "name"),
    [
        ("digits", "images", None, "digits"),
        ("folder", "/data/my photos", None, "my photos"),
        ("folder", "photos.v2/", None, "photos.v2"),
        ("folder", "clothing-folder.zip", None, "clothing-folder"),
        ("folder", "images", "https://example.org/sets/big%20set.tar.gz?raw=1", "big set"),
        ("folder", "images", "https://example.org", "folder"),
    ],
)
def test_a_data_set_of_ones_own_is_called_as_its_folder_or_archive(dataset, folder, address, name):
    assert data_name(dataset, folder, address) == name


def test_sections_of_earlier_versions_keep_their_values_types(new_key):
    assert upgraded_sections({"train": {"replicas": 3, "augment": {"shift": 1}}, "normalize": {"mean": [0.5]}}) == {
        "train": {"augment": {"mirror": False, "shift": 1}, "seeds": 3},
        "normalize": {"mean": [0.5]},
    }


def test_a_missing_key_says_what_versions_without_it_did(tmp_path, monkeypatch):
    monkeypatch.setitem(params_module.BEFORE, "train.augment.shift", 0)
    message = problem_of(changed(tmp_path, ("shift: 1, ", "")))
    assert message.endswith(
        "train.augment.shift is missing: maximum shift in each direction, pixels; 0 does what versions without it did"
    )


def test_a_missing_section_is_missing_each_of_its_keys_unless_they_stand_under_an_older_name(tmp_path):
    path = changed(tmp_path, ("shift: 1", "shift: 2"))
    path.write_text(re.sub(r"(?m)^  augment:(.*\n    )*.*\n", "  shift: 2\n  rotation: 0.0\n", path.read_text()))
    lines = problem_of(path).splitlines()[1:]
    assert "  train.augment.scale is missing: maximum change of size; 0.1 scales by 0.9 to 1.1" in lines
    assert [line for line in lines if line.split()[0].rpartition(".")[2].strip(":") in ("shift", "rotation")] == [
        "  train.shift: 2: renamed to train.augment.shift",
        "  train.rotation: 0.0: renamed to train.augment.rotation",
    ]


def test_a_key_of_a_section_within_is_overridden_and_checked(tmp_path):
    params = load_params(ROOT / "params.yaml")
    changed_params = params.override({"train.augment.shift": 3, "train.epochs": 2})
    assert (changed_params.train.augment.shift, changed_params.train.epochs) == (3, 2)
    assert changed_params.train.augment.rotation == params.train.augment.rotation
    with pytest.raises(ValueError, match=r"^train\.augment\.shift: 257 should be less than or equal to 256"):
        params.override({"train.augment.shift": 257})
    with pytest.raises(ValueError, match=r"^train\.augment\.shfit: unknown key; did you mean train\.augment\.shift\?"):
        params.override({"train.augment.shfit": 1})
    with pytest.raises(ValueError, match=r"^train\.augment: unknown key"):
        params.override({"train.augment": {}})
    tree = params.model_dump()
    tree["train"]["augment"] = 3
    with pytest.raises(ValueError, match=r"train\.augment: 3 should hold keys and values$"):
        parse_params(json.dumps(tree), tmp_path)  # JSON is YAML
    searched = ("train.batch_size: {choices: [16, 32, 64]}", "train.augment.shift: {choices: [1, 257]}")
    assert "sweep.search: train.augment.shift: 257 should be" in problem_of(changed(tmp_path, searched))
