"""dvc.yaml names every library file that a stage uses, and nothing a shell could misread."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from classifier.params import Params
from tests.samples import ROOT

PIPELINE = YAML(typ="safe").load(ROOT / "dvc.yaml")
STAGES = PIPELINE["stages"]


def imported(path: Path) -> set[Path]:
    """The library modules that a file names in an import, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {Path(*name.split(".")).with_suffix(".py") for name in names if name.startswith("classifier.")}
    return {path for path in found if (ROOT / path).is_file()}


def closure(path: Path) -> set[Path]:
    seen, waiting = set(), [path]
    while waiting:
        if (current := waiting.pop()) not in seen:
            seen.add(current)
            waiting += imported(current)
    return seen


def test_stage_module_and_params_section_share_a_name():
    assert list(STAGES) == list(Params.model_fields)[:4] == ["download", "normalize", "train", "evaluate"]
    for name, stage in STAGES.items():
        assert stage["cmd"].startswith(f"python -m stages.{name} params.yaml ")
        assert stage["params"] == [name]


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_real_imports(name):
    listed = {Path(dep) for dep in STAGES[name]["deps"] if dep.endswith(".py")}
    assert listed == closure(Path(f"stages/{name}.py"))


def test_the_packages_themselves_hold_no_code():
    for package in ("classifier", "stages", "commands"):
        body = ast.parse((ROOT / package / "__init__.py").read_text()).body
        assert all(isinstance(node, ast.Expr) for node in body)


def test_no_scalar_reaches_the_shell():
    assert not [stage["cmd"] for stage in STAGES.values() if set(stage["cmd"]) & set("$`{};&|<>")]


def test_every_output_of_a_stage_is_an_argument_of_its_command_and_ignored_by_git():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for stage in STAGES.values():
        for out in stage["outs"]:
            assert out in stage["cmd"].split()
            assert f"/{out.split('/')[0]}/" in ignored


def modules_imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
    return {name.split(".")[0] for name in names}


def test_stages_import_no_stage_and_the_library_neither():
    for folder in ("stages", "classifier"):
        for path in (ROOT / folder).glob("*.py"):
            assert not modules_imported(path) & {"stages", "commands"}, path


def test_no_stage_imports_mlflow():
    """Not even where it is written in a function: the recorder's process alone waits for MLflow."""
    for name, stage in STAGES.items():
        code = [path for path in stage["deps"] if path.endswith(".py")]
        assert not [path for path in code if "mlflow" in modules_imported(ROOT / path)], name
