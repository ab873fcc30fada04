"""Make a run's model the champion of MLflow's model registry if it passes the promotion checks, or roll back."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from classifier.arithmetic import use
from classifier.commands.application import RUN_HELP
from classifier.errors import UserError
from classifier.params import load_params

if TYPE_CHECKING:
    from classifier.params import PromoteParams
    from classifier.runs.promotion import Verdict
    from classifier.runs.registry import Registry


def promote(
    run_id: Annotated[str | None, typer.Argument(metavar="RUN", help=RUN_HELP, show_default=False)] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="make the previous champion the champion again")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="run the checks and change nothing")] = False,
    limits_alone: Annotated[
        bool,
        typer.Option(
            "--limits-alone",
            help="check only the limits if the champion has other test data or its predictions were deleted",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Make a run's model the champion if it passes the checks.

    The champion is the alias @champion in MLflow's model registry. The limits are in params.yaml, section promote.
    --rollback undoes the last promotion. If a check fails, nothing changes, each reason is printed, and the exit
    status is 1. If the run's model is already the champion, nothing changes, and the exit status is 0.

    Example: classifier promote latest
    """
    if rollback == (run_id is not None) or (rollback and (dry_run or limits_alone)):
        raise UserError("expected a run, or --rollback without one: classifier promote latest")
    values = load_params(Path("params.yaml"))
    use(values.evaluate.arithmetic)  # latency is measured in the arithmetic of classifier predict
    params = values.promote
    from classifier.runs.registry import Registry  # slow: mlflow
    from classifier.tracking.connection import open_store
    from classifier.tracking.errors import reported

    open_store()
    with reported():
        registry = Registry(params.model)
        if run_id is None:
            registry.roll_back()
            answer: dict[str, Any] = {"outcome": "rolled back"}
        else:
            answer = _promoted(run_id, registry, params, dry_run, limits_alone)
        answer |= {"model": params.model, "champion": registry.champion(), "previous": registry.replaced()}
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        _show(answer)
    if answer["outcome"] == "refused":
        sys.exit(1)


def _promoted(
    run_id: str, registry: Registry, params: PromoteParams, dry_run: bool, limits_alone: bool
) -> dict[str, Any]:
    from classifier.runs.promotion import consider, releasing
    from classifier.runs.reading import find_run

    verdict = consider(find_run(run_id), registry, params, limits_alone=limits_alone)
    answer = _described(verdict)
    if verdict.reasons:
        return answer | {"outcome": "refused"}
    if verdict.already:
        answer |= {"outcome": "unchanged", "version": verdict.champion}
    elif dry_run:
        return answer | {"outcome": "passed"}
    else:
        answer |= _with_onnx(verdict)  # before the champion changes, so that servers find the file
        version = registry.promote(verdict.model_id, verdict.tags, verdict.champion)
        answer |= {"outcome": "promoted", "version": version}
    try:
        return answer | {"release": releasing(verdict.run, answer["version"], params.model)}
    except (UserError, OSError) as error:  # the promotion succeeded: report it, and why there is no release
        return answer | {"release": [], "release_problem": str(error)}


def _with_onnx(verdict: Verdict) -> dict[str, str]:
    """Upload the model's ONNX file if it is missing. A network that cannot be exported is promoted without it."""
    from classifier.serving.stored import ONNX, attach, attached, find

    try:
        source = find(f"models:/{verdict.model_id}")
        assert source.model, "its files have just been measured"
        if attached(source.model) is None:
            from classifier.serving.export import exported  # slow: torch.onnx

            attach(source.model, exported(source))
        return {"onnx": ONNX}
    except (UserError, OSError) as error:
        return {"onnx_problem": str(error)}


def _described(verdict: Verdict) -> dict[str, Any]:
    checks = [
        {
            "check": check.name,
            "value": check.value if math.isfinite(check.value) else None,
            "allowed": check.allowed,
            "passed": check.passed,
        }
        for check in verdict.checks
    ]
    return {"run_id": verdict.run.info.run_id, "checks": checks, "reasons": verdict.reasons}


def _show(answer: Mapping[str, Any]) -> None:
    from classifier.commands._tables import tabulate

    rows = [
        [
            check["check"],
            "none" if check["value"] is None else f"{check['value']:.4g}",
            check["allowed"],
            "passed" if check["passed"] else "failed",
        ]
        for check in answer.get("checks", [])
    ]
    if rows:
        tabulate(["check", "value", "allowed", ""], rows)
    champion, previous = f"{answer['model']}@champion", answer["previous"]
    match answer["outcome"]:
        case "refused":
            print("\n  ".join([f"run {answer['run_id']} was not promoted, nothing was changed:", *answer["reasons"]]))
        case "passed":
            print(f"run {answer['run_id']} passes the checks; nothing was changed")
        case "unchanged":
            print(f"nothing to do: version {answer['version']} with this run's weights is already {champion}")
        case "promoted":
            place = f" instead of version {previous}" if previous else ""
            print(f"promoted: version {answer['version']} is {champion}{place}")
            if "onnx_problem" in answer:
                print(f"it has no ONNX file, so each project that serves it exports it: {answer['onnx_problem']}")
        case "rolled back":
            print(f"rolled back: version {answer['champion']} is {champion} again instead of version {previous}")
    if answer.get("release"):
        print("\n  ".join(["to release it:", *answer["release"]]))
    elif "release" in answer:
        print(f"to release it, {answer['release_problem']}")
