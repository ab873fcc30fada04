"""`reports/evaluate/report.html`: one page on the model, its training, its data and its quality.

It needs no other file, no internet and no script. Like all outputs, it depends only on the stage's inputs: it names no
run, no commit, no machine and no date. Names of classes and files are escaped, whatever they contain.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from classifier.evaluation.gallery import png_of, thumbnail
from classifier.evaluation.robustness import of_kinds

if TYPE_CHECKING:
    from classifier.evaluation.report import Evaluation

TEMPLATE = "page.html"  # beside this module
CLASSES = 60  # listed one by one; of more classes, half as many with the lowest recall are listed
CONFUSIONS = 15
MISCLASSIFIED = 100
SIDE = 128  # pixels of an image


def page(
    summary: Mapping[str, Any],
    metrics: Mapping[str, float],
    tables: Mapping[str, pd.DataFrame],
    pictures: Mapping[str, bytes],
    images: np.ndarray,
    evaluation: Evaluation,
) -> str:
    """The document. tables, pictures: by the name of their file. images: those of misclassified.csv."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": _percent, "count": "{:,}".format, "picture": _picture, "size": "{:,.3g}".format}
    per_class = tables["per_class.csv"]
    listed = per_class
    if len(per_class) > CLASSES:
        seen = per_class[per_class["support"] > 0]
        listed = seen.sort_values("recall", kind="stable").head(CLASSES // 2)
    chosen = evaluation.histories[evaluation.model.seed]
    return environment.get_template(TEMPLATE).render(
        summary=summary,
        metrics=metrics,
        data=evaluation.data,
        model=evaluation.model,
        last=chosen.iloc[-1].to_dict(),
        peak=chosen["learning_rate"].max(),
        seeds=sorted(evaluation.histories),
        absent=list(per_class["name"][per_class["support"] == 0]),
        per_class=_records(listed),
        confusions=_records(tables["confusions.csv"].head(CONFUSIONS)),
        pairs=len(tables["confusions.csv"]),
        misclassified=[
            row | {"image": png_of(thumbnail(image, SIDE))}
            for row, image in zip(_records(tables["misclassified.csv"].head(MISCLASSIFIED)), images, strict=False)
        ],
        wrong=int((~evaluation.predictions.right).sum()),
        robustness={kind: _records(rows) for kind, rows in tables["robustness.csv"].groupby("corruption", sort=False)},
        means=of_kinds(tables["robustness.csv"]),
        layers=evaluation.layers,
        by_class=[
            {"name": name, **{split: counts[number] for split, counts in evaluation.data.counts.items()}}
            for number, name in enumerate(evaluation.data.class_names[:CLASSES])
        ],
        pictures=pictures,
    )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with None for what is missing."""
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def _percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}%"


def _picture(content: bytes) -> str:
    return f"data:image/png;base64,{b64encode(content).decode()}"
