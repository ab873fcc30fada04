"""docs/three-levels.md names what there is: files, lessons, parameters, reports."""

from __future__ import annotations

import re

import losses
import tensors
from with_engine import params_of

from classifier.params import parse_params
from tests.examples.test_three_levels import DIGITS
from tests.projects import OUTPUTS
from tests.samples import ROOT

PAGE = ROOT / "docs/three-levels.md"
TEXT = PAGE.read_text()


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) > 30
    assert [link for link in links if not (PAGE.parent / link).is_file()] == []


def test_every_program_is_linked() -> None:
    programs = [f"../{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "examples").rglob("*.py")]
    assert len(programs) == 11
    assert [program for program in programs if f"({program})" not in TEXT] == []


def test_lessons_are_there() -> None:
    lessons = re.findall(r"tensors\.py\), `(\w+)`", TEXT) + re.findall(r"losses\.py\), `(\w+)`", TEXT)
    assert len(lessons) >= 6
    assert [lesson for lesson in lessons if not hasattr(tensors, lesson) and not hasattr(losses, lesson)] == []


def test_parameters_are_there() -> None:
    params = parse_params(params_of(DIGITS), PAGE).flat()
    named = set(re.findall(r"`((?:train|normalize|download|evaluate)\.\w+)`", TEXT))
    assert len(named) >= 7
    assert named <= params.keys()


def test_reports_are_there() -> None:
    named = re.findall(r"`(reports/\w+)/(\w+\.\w+)`", TEXT)
    assert len(named) >= 4
    assert [file for folder, file in named if file not in OUTPUTS[folder]] == []


def test_accuracies_are_between_36_and_38_percent() -> None:
    """Of all five programs, as they printed them."""
    rows = re.findall(r"^\| `(\w+)\.py` \| (\d+\.\d+)% \| \d+ \|$", TEXT, flags=re.MULTILINE)
    assert len(rows) == 5
    assert all(36 < float(accuracy) < 38 for _, accuracy in rows)
