"""A folder of images and what the stages download and normalize make of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from classifier.commands.recipe import apply
from classifier.data.dataset import DatasetMeta, Split, read_meta, read_paths, read_split
from stages import download, normalize
from tests.samples import ROOT


class Normalized:
    """The outputs in `place`; `values` are those of params.yaml's section normalize, `source` those of download."""

    def __init__(self, place: Path, folder: Path, source: Mapping[str, Any] | None = None, **values: Any) -> None:
        place.mkdir(exist_ok=True)
        self.folder, self.params, self.raw = folder, place / "params.yaml", place / "raw"
        self.source = {"dataset": "folder", "folder": str(folder), **(source or {})}
        self.data, self.reports = place / "normalized", place / "reports"
        self.write_params(**values)

    def write_params(self, **values: Any) -> None:
        text = (ROOT / "params.yaml").read_text()
        self.params.write_text(apply(text, {"download": self.source, "normalize": values})[0])

    def run(self) -> None:
        download.main([str(self.params), str(self.raw)])
        normalize.main([str(path) for path in (self.params, self.raw, self.data, self.reports)])

    @property
    def meta(self) -> DatasetMeta:
        return read_meta(self.data)

    def split(self, name: str) -> Split:
        return read_split(self.data, name, self.meta)

    def paths(self, name: str) -> list[str]:
        found = read_paths(self.data, name, self.meta)
        assert found is not None
        return found

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.reports / name)

    def contents(self) -> dict[str, bytes]:
        """Every file of both outputs."""
        return {str(path): path.read_bytes() for out in (self.data, self.reports) for path in out.iterdir()}
