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


def modules_of(folder: Path) -> set[Path]:
    return {path.relative_to(ROOT) for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"}


def expected_deps(stage: str) -> set[Path]:
    """A folder of the library where the stage uses most of its modules, single files elsewhere."""
    used = closure(Path(f"stages/{stage}.py"))
    rooms = {path.parent for path in used} - {Path("classifier"), Path("stages")}
    whole = {room for room in rooms if 2 * len(used & modules_of(room)) > len(modules_of(room))}
    return whole | {path for path in used if path.parent not in whole}


DATA_NAME = ["download.dataset", "download.folder", "download.address"]  # what download.name follows from


def test_stage_module_and_params_section_share_a_name():
    sections = [name for name in STAGES if name != "pretrained"]
    assert sections == list(Params.model_fields)[:4] == ["download", "normalize", "train", "evaluate"]
    for name in sections:
        assert STAGES[name]["params"] == [name, *(DATA_NAME if name == "evaluate" else [])]
    for name, stage in STAGES.items():
        assert stage["cmd"].startswith(f"python -m stages.{name} params.yaml ")


def test_pretrained_weights_follow_what_decides_them():
    """Of other stages' sections, so that a change of the network transfers no images again."""
    stage = STAGES["pretrained"]
    assert stage["params"] == ["train.network", "train.pretrained", "normalize.mean", "normalize.std"]
    assert "${train.pretrained_file}" in stage["deps"]


def params_read(path: Path) -> set[str]:
    """The keys of params.yaml, or its sections, that a stage's file names: `evaluate.device`, `train`."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        words = ast.unparse(node).split(".") if isinstance(node, ast.Attribute) else []
        if words[:1] == ["params"] and words[1] in Params.model_fields:
            found.add(".".join(words[1:3]))
    return {key for key in found if not any(other.startswith(f"{key}.") for other in found)}


# Where bytes come from whose digests are known decides none of them, nor does a name that is printed.
TRANSFER = {
    "train": {"download.name"},
    "normalize": {"download.folder"},
    "pretrained": {"download.mirror", "download.deadline_s", "download.retries"},
}


@pytest.mark.parametrize("name", STAGES)
def test_dvc_watches_every_key_that_a_stage_reads(name):
    """Or a stage would not run again when only that key changes."""
    watched = STAGES[name]["params"]
    read = params_read(Path(f"stages/{name}.py")) - TRANSFER.get(name, set())
    read -= {dep.strip("${}") for dep in STAGES[name]["deps"]}
    read -= {"download.name"} if set(DATA_NAME) <= set(watched) else set()
    assert not [key for key in read if not any(key == each or key.startswith(f"{each}.") for each in watched)]


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_real_imports(name):
    listed = {Path(dep) for dep in STAGES[name]["deps"] if dep.startswith(("stages/", "classifier/"))}
    assert listed == expected_deps(name)


def test_a_change_of_pictures_or_of_delivery_retrains_no_model():
    for room in ("evaluation", "tracking", "runs", "sweeps", "serving", "commands"):
        assert Path("classifier", room) not in {path.parent for path in closure(Path("stages/train.py"))}, room


def test_the_packages_themselves_hold_no_code():
    packages = [path for folder in ("classifier", "stages") for path in (ROOT / folder).rglob("__init__.py")]
    assert len(packages) > 10
    for package in packages:
        if package.parent.name != "serving":  # which MLflow loads by name
            assert all(isinstance(node, ast.Expr) for node in ast.parse(package.read_text()).body), package


def test_eight_files_at_most_lie_flat_and_each_folder_says_what_lives_there():
    assert len(list((ROOT / "classifier").glob("*.py"))) <= 8
    for package in (ROOT / "classifier").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(package.read_text())), package


def test_arrows_between_folders_run_one_way():
    """A folder comes after all folders that it imports, so there are no import cycles."""
    arrows: dict[Path, set[Path]] = {}
    for path in (ROOT / "classifier").rglob("*.py"):
        source = path.relative_to(ROOT)
        place = source.parent if source.parent != Path("classifier") else source
        targets = {found.parent if found.parent != Path("classifier") else found for found in imported(source)}
        arrows.setdefault(place, set()).update(targets - {place})
    order: list[Path] = []
    while ready := {place for place, targets in arrows.items() if targets <= set(order)} - set(order):
        order += sorted(ready)
    assert set(arrows) == set(order), f"a circle among {sorted(set(arrows) - set(order))}"


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
        for path in (ROOT / folder).rglob("*.py"):
            assert "stages" not in modules_imported(path), path


def test_no_stage_imports_mlflow():
    """Not even where it is written in a function: the recorder's process alone waits for MLflow."""
    for name in STAGES:
        code = closure(Path(f"stages/{name}.py"))
        assert not [path for path in code if "mlflow" in modules_imported(ROOT / path)], name
