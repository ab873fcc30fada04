"""Recipes go into params.yaml without touching anything else in it."""

import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from classifier.commands.recipe import apply
from classifier.params import STAGES, load_params, parse_params
from classifier.schema.section import keys
from tests.samples import ROOT, file_params

RECIPES = {path.stem: YAML(typ="safe").load(path) for path in sorted((ROOT / "recipes").glob("*.yaml"))}
TEXT = (ROOT / "params.yaml").read_text()


def flat(values, prefix=""):
    """`{"train.epochs": 20, ...}`"""
    inner = [flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {} for key, value in values.items()]
    return {k: v for each in inner for k, v in each.items()} | {
        f"{prefix}{key}": value for key, value in values.items() if not isinstance(value, dict)
    }


def test_the_recipes():
    assert set(RECIPES) == {
        "cifar10-folder",
        "cifar10-resnet",
        "clothing",
        "digits",
        "mnist",
        "tutorial-mnist",
        "tutorial-cifar10",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_each_is_valid_and_states_what_to_expect_and_what_was_measured(name):
    recipe = RECIPES[name]
    text, _ = apply(TEXT, recipe["params"])
    params = parse_params(text, ROOT / "params.yaml").flat()
    values = flat(recipe["params"])
    assert {key: params[key] for key in values} == values
    assert recipe["description"]
    assert recipe["expected"]
    assert recipe["measured"]


@pytest.mark.parametrize("name", RECIPES)
def test_each_sets_the_same_keys_so_that_nothing_of_another_is_left(name):
    of_digits, of_name = (set(flat(RECIPES[each]["params"])) for each in ("digits", name))
    assert of_digits == of_name
    machine = {
        f"train.{key}" for key in ("seed", "seeds", "device", "processes", "data")
    }  # of the person's own choosing
    assert {key.partition(".")[0] for key in of_digits} <= set(STAGES)  # the bar for a champion does not move
    assert of_digits | machine >= set(keys(type(file_params().train), "train."))


def test_digits_is_the_default():
    assert apply(TEXT, RECIPES["digits"]["params"])[1] == []


@pytest.mark.parametrize("name", RECIPES)
def test_there_and_back_keeps_comments_and_layout(name):
    there, changes = apply(TEXT, RECIPES[name]["params"])
    assert [line.partition("#")[2] for line in there.splitlines()] == [
        line.partition("#")[2] for line in TEXT.splitlines()
    ]
    changed = [old for old, new in zip(TEXT.splitlines(), there.splitlines(), strict=True) if old != new]
    assert len(changed) <= len(changes)  # a line may have several values
    back, _ = apply(there, RECIPES["digits"]["params"])
    assert parse_params(back, ROOT) == parse_params(TEXT, ROOT)


def test_values_in_other_forms_are_replaced_too():
    text = TEXT.replace("  mean: null # ", "  mean:\n    - 0.1\n    # ").replace("  std: null", "  std:")
    text, changes = apply(text, {"normalize": {"mean": [0.5], "std": [1.0]}})
    assert "  normalize.mean: [0.1] -> [0.5]" in changes
    normalize = parse_params(text, ROOT).normalize
    assert (normalize.mean, normalize.std) == ([0.5], [1.0])


def run(folder, *arguments):
    command = [sys.executable, "-m", "classifier", "recipe", *arguments]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "params.yaml").write_text(TEXT)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


def test_the_command_says_what_it_changed(project):
    done = run(project, "tutorial-mnist")
    assert done.returncode == 0
    assert "  train.learning_rate: 0.05 -> 0.001\n" in done.stdout
    assert "  normalize.mean: null -> [0.5]\n" in done.stdout
    assert "measured: " in done.stdout
    assert load_params(project / "params.yaml").train.epochs == 2
    assert "nothing to change" in run(project, "tutorial-mnist").stdout


def test_without_a_name_all_are_listed_and_nothing_changes(project):
    done = run(project)
    assert (done.returncode, done.stderr) == (0, "")
    for name, recipe in RECIPES.items():
        assert f"{name}  " in done.stdout
        assert recipe["description"].split()[-1] in done.stdout
        assert recipe["measured"].split()[-1] in done.stdout
    assert (project / "params.yaml").read_text() == TEXT


def test_a_wrong_name_changes_nothing(project):
    done = run(project, "nope")
    assert done.returncode == 1
    assert "'nope' is not a recipe; allowed are cifar10-folder, " in done.stderr
    assert "Traceback" not in done.stderr
    assert (project / "params.yaml").read_text() == TEXT


def test_a_damaged_params_yaml_is_named_and_kept(project):
    (project / "params.yaml").write_text(TEXT.replace("epochs: 20", "epochs: many"))
    done = run(project, "mnist")
    assert done.returncode == 1
    assert "train.epochs: 'many'" in done.stderr
    assert "epochs: many" in (project / "params.yaml").read_text()
