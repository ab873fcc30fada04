"""The leaderboard: runs that differ only in the seed as one entry, with a confidence interval and a paired test.

The runs of an entry have the same params, data and code. Params that change neither the model nor its accuracy
(`INCIDENTAL`) and the environment are ignored. The code is dvc.yaml and what its stages depend on, committed or not
(`classifier.repository.code`); a change of other files, such as dvc.lock, does not create a new entry. A run whose
uncommitted changes are unknown is a separate entry.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from classifier.errors import UserError
from classifier.project.files import sha256
from classifier.project.lineage import project_root
from classifier.recording.tags import CODE_TAG, COMMIT_TAG, DIRTY_TAG, EVALUATED_TAG, PARENT_TAG
from classifier.repository.code_diff import Code, code_ids
from classifier.runs.reading import artifact, read_predictions, short
from classifier.runs.significance import holm, paired
from classifier.training.summary import interval

INCIDENTAL = (  # prefixes of params' names
    "train.seed",
    "train.seeds",  # on a CPU, a seed trained with others has the bits of a single one; on CUDA it differs by rounding
    "train.log_every",
    "train.checkpoint_every",
    "download.folder",  # the location of the images, whose content the data's hash identifies
    "download.address",
    "download.mirror",
    "download.deadline_s",
    "download.retries",
    "evaluate.",
)
STANDING = ("run", "name", "code", "artifact_uri", "predictions_uri")  # of a run that may represent its entry
LEVEL = 0.05  # significance level of all tests together
READERS = 8  # files read in parallel, for remote stores
ACCURACY = "metrics.test/accuracy"
CODE, DIRTY, COMMIT = f"tags.{CODE_TAG}", f"tags.{DIRTY_TAG}", f"tags.{COMMIT_TAG}"  # columns
Row = dict[Hashable, Any]


@dataclass(frozen=True)
class Result:
    """One seed's run."""

    run: str
    seed: str
    accuracy: float


@dataclass(frozen=True)
class Entry:
    """A row of the board. `run` represents it: the run of median accuracy, or the next one that has predictions."""

    run: str
    results: Sequence[Result]  # by seed; only the newest of a repeated seed
    mean: float  # test accuracy
    std: float | None  # None for a single seed, like the interval
    low: float | None  # 95% interval of the mean, by Student's t
    high: float | None
    trained_s: float | None  # mean
    params: Mapping[str, str] = field(repr=False)
    data: str
    code: str  # the commit, with a suffix for uncommitted changes: `0c74e83+1f3a9d20`
    code_id: str = field(repr=False)  # equal for equal code, whatever the commit
    test_data: str  # only entries with the same are compared
    name: str = field(repr=False)  # of the run
    artifact_uri: str = field(repr=False)
    predictions_uri: str | None = field(repr=False)
    # run, name, code, artifact_uri and predictions_uri of the entry's other runs, nearest to the median first.
    next_ones: Sequence[Mapping[str, Any]] = field(repr=False)
    parameters: int | None = None  # of the network
    best: bool = False
    best_alone: int | None = None  # test images that only the best entry's run predicts correctly
    here_alone: int | None = None  # test images that only this entry's run predicts correctly
    p: float | None = None  # McNemar's
    p_corrected: float | None = None  # by Holm, for the number of tests on the board
    problem: str | None = None  # why it was not compared with the best

    @property
    def label(self) -> str:
        """The run's short id and the last word of its name."""
        return " ".join([self.run[:8], *self.name.split()[-1:]])

    @property
    def verdict(self) -> str:
        if self.best:
            return "best"
        if self.p_corrected is None:
            return self.problem or "not compared"
        if self.p_corrected >= LEVEL:
            return "not significant"
        return "better" if (self.here_alone or 0) > (self.best_alone or 0) else "worse"

    def summary(self, columns: Iterable[str]) -> dict[str, Any]:
        """As JSON."""
        return {
            "run": self.run,
            "name": self.name,
            "verdict": self.verdict,
            "n": len(self.results),
            "mean": self.mean,
            "std": self.std,
            "low": self.low,
            "high": self.high,
            "best_alone": self.best_alone,
            "here_alone": self.here_alone,
            "p": self.p,
            "p_corrected": self.p_corrected,
            "parameters": self.parameters,
            "trained_s": self.trained_s,
            "differing": {name: self.value(name) for name in columns},
            "data": self.data,
            "code": self.code,
            "test_data": self.test_data,
            "runs": [vars(result) for result in self.results],
        }

    def value(self, column: str) -> str:
        """A param, `data` or `code`; "-" if the runs do not have this param."""
        return {"data": self.data, "code": self.code}.get(column) or self.params.get(column, "-")

    def shown(self, columns: Iterable[str]) -> dict[str, str]:
        """The entry as text, by column."""
        known = self.low is not None and self.high is not None
        tested = self.p_corrected is not None
        return {
            "n": str(len(self.results)),
            "accuracy": f"{self.mean:.2%}",
            "std": "-" if self.std is None else f"{100 * self.std:.2f}",
            "95% interval": f"{100 * self.low:.2f} to {100 * self.high:.2f}" if known else "-",  # type: ignore[operator]
            **{name: short(self.value(name)) for name in columns},
            "parameters": f"{self.parameters:,}" if self.parameters else "-",
            "training, s": "-" if self.trained_s is None else f"{self.trained_s:.1f}",
            "against the best": self.verdict
            + (f", p {_p_value(self.p_corrected)} ({self.here_alone} : {self.best_alone})" if tested else ""),  # type: ignore[arg-type]
            "run": self.label,
        }


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


@dataclass(frozen=True)
class Board:
    """Entries on the board's test split, highest mean first, then those on other test splits."""

    entries: Sequence[Entry]
    columns: Sequence[str]  # params that differ between entries, and `data` and `code` where these do
    test_data: str

    def table(self) -> pd.DataFrame:
        """A row of text per entry; the index is its rank, or "-" for an entry on another test split."""
        places = [str(at) if self.ranks(entry) else "-" for at, entry in enumerate(self.entries, start=1)]
        return pd.DataFrame([entry.shown(self.columns) for entry in self.entries], places)

    def ranks(self, entry: Entry) -> bool:
        """Whether the entry is on the board's test split."""
        return entry.test_data == self.test_data

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        entries = [entry.summary(self.columns) for entry in self.entries]
        return {"test_data": self.test_data, "level": LEVEL, "differing": list(self.columns), "entries": entries}


def leaderboard(runs: pd.DataFrame, sweep: str | None = None, test_data: str | None = None) -> Board:
    """Rank all runs (`reading.all_runs`), or only those of a `sweep`, given by the id of its parent run.

    The test split is that of the newest result, or the one whose digest begins with `test_data`. Raises UserError if
    there is nothing to show.
    """
    rows = results(runs, sweep)
    if rows.empty:
        raise UserError(f"no evaluated run{f' in sweep {sweep}' if sweep else ''}: dvc repro makes one")
    digests = list(dict.fromkeys(rows["test_data"]))  # the newest first
    chosen = next((digest for digest in digests if digest.startswith(test_data or "")), None)
    if chosen is None:
        raise UserError(f"no run has test data {test_data}; recorded are {', '.join(digests)}")
    entries = sorted(groups(rows), key=lambda entry: (entry.test_data != chosen, -entry.mean))
    return Board(_compared(_counted(entries), chosen), _differing(entries), chosen)


def results(runs: pd.DataFrame, sweep: str | None = None) -> pd.DataFrame:
    """The rows with the result of one seed, newest first, without the parents of seeds and sweeps."""
    if runs.empty:
        return runs
    needed = (ACCURACY, f"tags.{EVALUATED_TAG}", f"tags.{PARENT_TAG}", COMMIT)
    rows = runs.assign(**{name: None for name in needed if name not in runs})
    if sweep:
        parent = rows[f"tags.{PARENT_TAG}"]
        rows = rows[(parent == sweep) | (rows["replica_of"].map(parent) == sweep)]
    rows = rows[rows[ACCURACY].notna() & (rows[f"tags.{EVALUATED_TAG}"] == "true")]
    return rows[~rows.index.isin(rows[f"tags.{PARENT_TAG}"].dropna())].sort_values("start", ascending=False)


def groups(rows: pd.DataFrame) -> list[Entry]:
    """Group the rows of `results` into entries that are not yet compared."""
    rows = _with_code(rows).fillna({"data": "-", "test_data": "-"})
    params = [name for name in map(str, rows) if name.startswith("params.") and not _incidental(name)]
    rows["group"] = rows.groupby([*params, "data", "code_id", "test_data"], dropna=False, sort=False).ngroup()
    rows = rows.drop_duplicates(["group", "seed"]).sort_values(ACCURACY)  # keeps the newest of a repeated seed
    together = rows.groupby("group")
    summaries = together[ACCURACY].agg(["count", "mean", "std"])
    low, high = interval(summaries["mean"], summaries["std"], summaries["count"], highest=1)
    summaries["low"], summaries["high"] = low, high
    summaries["trained_s"] = together["trained_s"].mean()
    members = defaultdict(list)
    for row in rows.rename_axis("run").reset_index().to_dict("records"):
        members[row["group"]].append(row)
    return [_entry(members[number], summary, params) for number, summary in summaries.to_dict("index").items()]


def _entry(rows: Sequence[Row], summary: Mapping[Hashable, float], params: Sequence[str]) -> Entry:
    """`rows`: sorted by accuracy."""
    candidates = [row for row in rows if isinstance(row["predictions_uri"], str)] or rows
    middle = (len(candidates) - 1) // 2  # the lower one of two
    nearest = sorted(range(len(candidates)), key=lambda place: abs(place - middle))
    median, *others = (candidates[place] for place in nearest)
    results = [Result(row["run"], str(row["seed"]), row[ACCURACY]) for row in rows]
    return Entry(
        run=median["run"],
        results=sorted(results, key=lambda result: (len(result.seed), result.seed)),
        **{name: None if math.isnan(value) else value for name, value in summary.items() if name != "count"},  # type: ignore[arg-type]
        params={name.removeprefix("params."): median[name] for name in params if isinstance(median[name], str)},
        data=median["data"],
        code=median["code"],
        code_id=median["code_id"],
        test_data=median["test_data"],
        name=median["name"],
        artifact_uri=median["artifact_uri"],
        predictions_uri=median["predictions_uri"],
        next_ones=[{name: row[name] for name in STANDING} for row in others],
    )


def _incidental(column: str) -> bool:
    return column.removeprefix("params.").startswith(INCIDENTAL)


def _with_code(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the columns `code` and `code_id` of an entry."""
    rows = rows.assign(**{name: None for name in (CODE, DIRTY) if name not in rows})
    commits, tags = rows[COMMIT].fillna("none"), rows[CODE]
    dirty = (rows[DIRTY] == "true") | (rows[DIRTY].isna() & rows[COMMIT].notna())  # or unknown
    untagged = list(dict.fromkeys(rows.loc[dirty & tags.isna(), "artifact_uri"]))  # old runs, and unknown changes
    with ThreadPoolExecutor(READERS) as pool:
        patches = dict(zip(untagged, pool.map(_patch, untagged), strict=True))
    codes = [
        Code(commit, patches[address] if address in patches and changed else b"")
        for commit, address, changed in zip(commits, rows["artifact_uri"], dirty, strict=True)
    ]
    every = [*codes, *map(Code, commits)]
    known = {code: sha256(code.commit.encode() + code.decisive_patch) for code in every}
    known |= code_ids(every, project_root())
    ids = [tag if isinstance(tag, str) else known[code] for tag, code in zip(tags, codes, strict=True)]
    shown = [
        code.commit[:7] + (f"+{code_id[:8]}" if changed and code_id != known[Code(code.commit)] else "")
        for code, code_id, changed in zip(codes, ids, dirty, strict=True)
    ]
    return rows.assign(code=shown, code_id=ids)


def _patch(address: str) -> bytes:
    try:
        return artifact(address, "code/uncommitted.diff")
    except OSError:
        return f"diff --git a/classifier/unknown b/classifier/unknown of {address}".encode()  # equal to no other


def _counted(entries: Sequence[Entry]) -> list[Entry]:
    """Add the network's number of parameters."""

    def count(entry: Entry) -> int | None:
        for name in ("train/summary.json", "train/metrics.json"):  # where earlier versions recorded it, if at all
            with suppress(OSError, ValueError, KeyError):
                return int(json.loads(artifact(entry.artifact_uri, name))["parameters"])
        return None

    with ThreadPoolExecutor(READERS) as pool:
        counts = pool.map(count, entries)
    return [replace(entry, parameters=number) for entry, number in zip(entries, counts, strict=True)]


def _compared(entries: Sequence[Entry], test_data: str) -> list[Entry]:
    """Add McNemar's test of each entry's run against the best entry's run, on the same images."""

    def read(entry: Entry) -> tuple[Entry, pd.DataFrame | str]:
        if entry.test_data != test_data:
            return entry, "other test data"
        for standing in [entry, *(replace(entry, **other) for other in entry.next_ones)]:
            with suppress(OSError, ValueError, KeyError):
                if standing.predictions_uri is not None:
                    return standing, read_predictions(standing.predictions_uri, ["label", "predicted"])
        return entry, "no predictions"

    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(read, entries))
    entries, tables = [entry for entry, _ in found], [table for _, table in found]
    compared = [replace(entries[0], best=True)]
    for entry, table in zip(entries[1:], tables[1:], strict=True):
        if isinstance(table, str):
            compared.append(replace(entry, problem=table))
        elif isinstance(tables[0], str):
            compared.append(replace(entry, problem="the best has no predictions"))
        else:
            alone = paired(tables[0], table)
            compared.append(replace(entry, best_alone=alone.first_alone, here_alone=alone.second_alone, p=alone.p))
    tested = [place for place, entry in enumerate(compared) if entry.p is not None]
    for place, p in zip(tested, holm([compared[place].p or 0.0 for place in tested]), strict=True):
        compared[place] = replace(compared[place], p_corrected=p)
    return compared


def _differing(entries: Sequence[Entry]) -> list[str]:
    params = dict.fromkeys(name for entry in entries for name in entry.params)
    names = [name for name in (*params, "data") if len({entry.value(name) for entry in entries}) > 1]
    return [*names, "code"] if len({entry.code_id for entry in entries}) > 1 else names
