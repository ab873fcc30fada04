"""Check the locked dependencies for known vulnerabilities and list the licences of the installed packages.

Example: classifier audit --json
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Annotated, Any

import typer

LOCKS = tuple(Path(f"requirements{of}.lock") for of in ("", "-uv", "-serve", "-bench"))
TIMEOUT_S = 15  # seconds per request to the index


def audit(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    licences_only: Annotated[bool, typer.Option("--licences", help="list the licences only")] = False,
) -> None:
    """Check dependencies for vulnerabilities; list their licences.

    Checks every locked version with pip-audit.

    Exit status 0: no known vulnerabilities, 1: some were found, 2: the check could not be completed.

    Example: classifier audit --json
    """
    found, problem = ([], "not asked") if licences_only else vulnerabilities(LOCKS)
    licences = {each.name: licence_of(each) for each in sorted(distributions(), key=lambda each: each.name.lower())}
    if as_json:
        print(json.dumps({"vulnerabilities": found, "problem": problem, "licences": licences}, indent=2))
    else:
        print(text(found, problem, licences))
    if found:
        sys.exit(1)
    if problem and not licences_only:
        sys.exit(2)


def vulnerabilities(locks: tuple[Path, ...]) -> tuple[list[dict[str, Any]], str]:
    """Return the known vulnerabilities of the locked versions, and why the check is incomplete; empty if it is not."""
    for lock in locks:
        if not lock.exists():
            raise FileNotFoundError(f"{lock} does not exist: make lock")
    arguments = [argument for lock in locks for argument in ("--requirement", str(lock))]
    options = ["--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off"]
    ended = subprocess.run(  # noqa: S603, fixed arguments
        [sys.executable, "-m", "pip_audit", *arguments, *options, "--timeout", str(TIMEOUT_S)],
        capture_output=True,
        text=True,
    )
    try:
        answers = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        return [], (lines or [f"pip-audit ended with status {ended.returncode}"])[-1].strip()[:300]
    unknown = [each["name"] for each in answers if "skip_reason" in each]
    found = [
        {"name": each["name"], "version": each["version"], **{key: known[key] for key in ("id", "fix_versions")}}
        for each in answers
        for known in each.get("vulns", [])
    ]
    some = f"{', '.join(unknown[:3])}{' and others' if unknown[3:] else ''}"
    return found, f"the index does not know {len(unknown)} of {len(answers)} packages ({some})" if unknown else ""


def licence_of(package: Distribution) -> str:
    """The licence in the metadata: the SPDX expression, the classifiers or the first line of the free text."""
    metadata = package.metadata
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classifiers = [each for each in metadata.get_all("Classifier") or [] if each.startswith("License ::")]
    if names := [name for each in classifiers if (name := each.rpartition(" :: ")[2]) != "OSI Approved"]:
        return "; ".join(names)
    stated = "".join(metadata.get_all("License") or [])
    return (stated.strip().splitlines() or ["not stated"])[0][:80]


def text(found: list[dict[str, Any]], problem: str, licences: dict[str, str]) -> str:
    """Format the vulnerabilities, the packages with their licences, and the number of packages per licence."""
    lines = []
    for each in found:
        fixed = ", ".join(each["fix_versions"]) or "no version yet"
        lines.append(f"{each['name']} {each['version']}: {each['id']}, fixed in {fixed}")
    if problem:
        lines.append(f"known vulnerabilities: could not be checked: {problem}")
    else:
        lines.append(f"known vulnerabilities: {len(found)} of {', '.join(map(str, LOCKS))}")
    width = max(map(len, licences))
    lines += ["", *(f"{name:{width}}  {licence}" for name, licence in licences.items()), ""]
    lines += [f"{count:4}  {licence}" for licence, count in Counter(licences.values()).most_common()]
    return "\n".join(lines)
