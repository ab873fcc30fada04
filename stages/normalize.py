"""Convert a data set's original files to the canonical form that all later stages read, and show what it holds.

    python -m stages.normalize params.yaml data/raw data/normalized reports/data

Reads: params.yaml, section `normalize`; the output of the stage download, whose manifest names the data set; for
dataset `folder` the images, where they are.
Writes: the third folder, with the images and labels of each split and `meta.json` (`classifier.data.dataset`); the
fourth, with tables and pictures of the data (`classifier.data.report`).
Why: training, evaluation and serving handle a single form, (N, C, H, W) uint8, independent of the source. Unusable
files, duplicates and changed pixels are reported before training.
An interrupted decoding resumes where it stopped (`classifier.data.decoding`).
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL

from classifier.data.collection import Collection
from classifier.data.dataset import SPLITS, DatasetMeta, known_preprocessing, write_meta
from classifier.data.drift import Drift, find_drift
from classifier.data.duplicates import find_duplicates
from classifier.data.gathering import decode_folder, folder_set, known_set, preprocessing_of
from classifier.data.normalization import statistics
from classifier.data.pixels import PINNED, decoder
from classifier.data.preprocessing import Preprocessing
from classifier.data.report import Report, write_problems
from classifier.errors import UserError
from classifier.params import NormalizeParams, load_params
from classifier.project.cli import paths, run_stage
from classifier.project.files import replacing, sha256
from classifier.project.lineage import project_root
from classifier.project.resuming import own_code, resumable
from classifier.repository.previous import previous_files
from classifier.sources.catalog import SOURCES
from classifier.sources.raw import Manifest, read_manifest, read_raw

WORK = Path(".pipeline/normalizing")  # in the project's root


def main(arguments: list[str]) -> None:
    params_path, raw, normalized, reports = paths(arguments, "params", "raw", "normalized", "reports")
    params = load_params(params_path, for_training=False)
    manifest = read_manifest(raw)
    if manifest.images is None:
        _, files = read_raw(raw)
        collection = known_set(manifest.dataset, files, SOURCES[manifest.dataset].class_names, params.normalize)
        preprocessing = known_preprocessing(collection.shape[0])
        write(manifest, collection, preprocessing, params.normalize, {}, None, normalized, reports)
    else:
        normalize_folder(manifest, raw, Path(params.download.folder), params.normalize, normalized, reports)


def normalize_folder(
    manifest: Manifest, raw: Path, folder: Path, params: NormalizeParams, normalized: Path, reports: Path
) -> None:
    """Decode a folder of images and write both outputs."""
    from classifier.sources.images import Images  # here, because the known sets do not need pyarrow

    if PIL.__version__ != PINNED:
        print(f"decoding with Pillow {PIL.__version__}: {PINNED} is locked, pixels may differ from it", file=sys.stderr)
    images = Images(raw, folder)
    preprocessing = preprocessing_of(images, params)
    with resumable(project_root() / WORK, fingerprint(preprocessing)) as work:
        decoded = decode_folder(images, preprocessing, work)
        if decoded.problems and params.bad_images == "refuse":
            with replacing(reports) as new:
                write_problems(new, decoded.problems)
            path, reason = next(iter(decoded.problems.items()))
            raise UserError(
                f"{len(decoded.problems):,} of {len(images):,} files cannot be used, the first: {path!r:.300}: "
                f"{reason}: repair or remove those that {reports}/problems.csv lists, or set normalize.bad_images: "
                "exclude"
            )
        collection = folder_set(images, decoded, params)
        changed = find_drift(previous_files(normalized), collection, preprocessing)
        write(manifest, collection, preprocessing, params, decoded.problems, changed, normalized, reports)


def write(
    manifest: Manifest,
    collection: Collection,
    preprocessing: Preprocessing,
    params: NormalizeParams,
    problems: dict[str, str],
    drift: Drift | None,
    normalized: Path,
    reports: Path,
) -> None:
    """Write both outputs and print a summary. Raises UserError for leaks, if params refuse them."""
    names = collection.originals.names
    duplicates = find_duplicates(collection.facts.digests, collection.facts.thumbs, collection.splits)
    leaking = [names[place] for place in duplicates.leaking]
    kept, excluded = np.ones(len(collection.labels), bool), dict(problems)
    if params.leaks == "drop":
        kept[duplicates.leaking] = False
        excluded |= dict.fromkeys(leaking, "has a duplicate in a later split of train, validation, test")
    train = kept & (collection.splits == SPLITS.index("train"))
    left = np.bincount(collection.labels[train], minlength=len(collection.class_names))
    before = np.bincount(collection.labels[collection.splits == SPLITS.index("train")], minlength=len(left))
    if (empty := np.flatnonzero((left == 0) & (before > 0))).size:
        raise UserError(
            f"normalize.leaks: drop leaves no training images for class {collection.class_names[empty[0]]!r}: add "
            "images, or set normalize.leaks: report"
        )
    mean, std = statistics(*collection.sums(train), params)
    report = Report(collection, preprocessing, kept, duplicates, problems, excluded, drift)
    if leaking and params.leaks == "refuse":
        with replacing(reports) as new:
            report.write(new)
        raise UserError(
            f"images with a duplicate in a later split of train, validation, test: {len(leaking):,}, the first: "
            f"{leaking[0]!r:.300}: remove those that {reports}/duplicates.csv lists, or set normalize.leaks: drop"
        )
    with replacing(normalized) as new, replacing(reports) as new_reports, ThreadPoolExecutor(1) as beside:
        writing = beside.submit(collection.write, new, kept)
        summary = report.write(new_reports)
        of_files = collection.originals.sha256 is not None
        table = collection.write_table(new, kept) if of_files else None
        files, labels = writing.result()
        meta = DatasetMeta(
            name=manifest.dataset,
            source=manifest.home,
            licence=manifest.licence,
            citation=manifest.citation,
            class_names=list(collection.class_names),
            channels=preprocessing.channels,
            size=preprocessing.image_size,
            preprocessing=preprocessing,
            mean=mean,
            std=std,
            ranges=collection.ranges(train),
            counts=collection.counts(kept),
            files=files,
            labels=labels,
            images=table,
            decoder=decoder() if of_files else None,
            excluded=excluded,
        )
        write_meta(new, meta)
    print(f"images: {', '.join(f'{sum(counts):,} {split}' for split, counts in meta.counts.items())}")
    print(f"mean {', '.join(f'{value:.4f}' for value in mean)}, std {', '.join(f'{value:.4f}' for value in std)}")
    if problems:
        print(f"files that cannot be used and were excluded: {len(problems):,}, listed in {reports}/problems.csv")
    if summary["blank"]:
        print(f"images of a single colour: {summary['blank']:,}, listed in {reports}/blank.csv")
    if summary["leaks"]:
        done = f"images dropped: {len(leaking):,}" if params.leaks == "drop" else "normalize.leaks: drop removes them"
        print(f"pairs of duplicates in two splits: {summary['leaks']:,}, shown in {reports}/duplicates.png; {done}")
    if drift and drift.largest:
        known = [value for value in drift.largest.values() if value is not None]
        largest = f", by up to {max(known)} of 255" if known else ""
        print(
            f"images whose pixels differ from {drift.decoder}: {len(drift.largest):,}{largest}, listed in "
            f"{reports}/drift.csv",
            file=sys.stderr,
        )


def fingerprint(preprocessing: Preprocessing) -> str:
    """Identifies what, besides a file, determines its pixels; chunks are reused only if it is the same."""
    what = [preprocessing.model_dump(), decoder(), own_code("data")]
    return sha256(json.dumps(what, sort_keys=True).encode())[:16]


if __name__ == "__main__":
    run_stage(main)
