"""Download a data set's original files, verify them and write a manifest.

    python -m stages.download params.yaml data/raw

Reads: params.yaml, section `download`; the variable DATA_MIRROR; the network, unless the files are on this machine.
Writes: the folder, with the original files and `manifest.json` (`classifier.sources.raw`) and nothing else.
Why: all later stages start from bytes that match a published checksum. The output does not depend on the mirror.
"""

from __future__ import annotations

from classifier.params import load_params
from classifier.project.cli import paths, run_stage
from classifier.project.files import replacing
from classifier.sources.catalog import origin
from classifier.sources.mirrors import configured_mirrors
from classifier.sources.raw import write_manifest
from classifier.sources.transfer import fetch


def main(arguments: list[str]) -> None:
    params_path, raw = paths(arguments, "params", "raw")
    params = load_params(params_path).download
    source = origin(params.dataset)
    # Installed files take precedence over any mirror, so that `digits` never needs a network.
    installed = [str(source.installed)] if source.installed else []
    mirrors = [*installed, *configured_mirrors(params.mirror), *source.mirrors]

    with replacing(raw) as new:
        for file in source.files:
            mirror = fetch(file, new, mirrors, deadline_s=params.deadline_s, retries=params.retries)
            print(f"{file.name} from {mirror}", flush=True)
        manifest = write_manifest(new, params.dataset, source)
    print(f"{params.dataset}: {len(manifest.files)} files, {sum(file.bytes for file in manifest.files):,} bytes")


if __name__ == "__main__":
    run_stage(main)
