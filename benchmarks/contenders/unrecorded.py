"""Our engine without the stage around it: `fit` on the same data and params, its rows kept in a list.

python -m benchmarks.contenders.unrecorded PARAMS DATA
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.contenders.ours import warm_up
from benchmarks.contenders.stopwatch import loop_seconds, say
from classifier.dataset import read_meta, read_split
from classifier.device import be_deterministic, pick_device
from classifier.history import Row
from classifier.model_dir import build
from classifier.params import load_params
from classifier.training import fit


def main() -> None:
    params, data = load_params(Path(sys.argv[1])).train, Path(sys.argv[2])
    device = pick_device(params.device)
    be_deterministic(device)
    meta = read_meta(data)
    train, validation = read_split(data, "train", meta), read_split(data, "validation", meta)
    classifier = build(meta, params.seed)
    warm_up(classifier, train, params, device)
    rows: list[Row] = []
    loop_s = loop_seconds(lambda: fit(classifier, train, validation, params, device, rows.append), device)
    say(loop_s=loop_s, steps=rows[-1].step)


if __name__ == "__main__":
    main()
