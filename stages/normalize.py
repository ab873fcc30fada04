"""Convert a data set's original files to the canonical form that all later stages read.

    python -m stages.normalize params.yaml data/raw data/normalized

Reads: params.yaml, section `normalize`; the output of the stage download, whose manifest names the data set.
Writes: the folder, with a file of images and labels per split and `meta.json` (`classifier.data.dataset`).
Why: training, evaluation and serving handle a single form, (N, C, 32, 32) uint8, independent of the source.
"""

from __future__ import annotations

from classifier.data.dataset import SIZE, DatasetMeta, known_preprocessing, write_meta, write_split
from classifier.data.formats import parse
from classifier.data.normalization import counts, make_splits, statistics
from classifier.data.ranges import usual
from classifier.params import load_params
from classifier.project.cli import paths, run_stage
from classifier.project.files import replacing
from classifier.sources.catalog import SOURCES
from classifier.sources.raw import read_raw


def main(arguments: list[str]) -> None:
    params_path, raw, normalized = paths(arguments, "params", "raw", "normalized")
    params = load_params(params_path).normalize
    manifest, files = read_raw(raw)
    class_names = SOURCES[manifest.dataset].class_names

    splits = make_splits(*parse(manifest.dataset, files), class_names, params)
    mean, std = statistics(splits["train"].images, params)

    channels = splits["train"].images.shape[1]
    preprocessing = known_preprocessing(channels)

    with replacing(normalized) as new:
        meta = DatasetMeta(
            name=manifest.dataset,
            source=manifest.home,
            licence=manifest.licence,
            citation=manifest.citation,
            class_names=list(class_names),
            channels=channels,
            size=SIZE,
            preprocessing=preprocessing,
            mean=mean,
            std=std,
            ranges=usual(splits["train"].images, preprocessing.margin),
            counts={name: counts(split.labels, class_names) for name, split in splits.items()},
            files={name: write_split(new, name, split) for name, split in splits.items()},
        )
        write_meta(new, meta)
    print(f"{meta.name}: {', '.join(f'{len(split):,} {name}' for name, split in splits.items())}")
    print(f"mean {', '.join(f'{value:.4f}' for value in mean)}, std {', '.join(f'{value:.4f}' for value in std)}")


if __name__ == "__main__":
    run_stage(main)
