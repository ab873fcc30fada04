"""Provide pretrained weights for the network of params.yaml, if train.pretrained asks for some.

    python -m stages.pretrained params.yaml data/pretrained

Reads: params.yaml, `train.network`, `train.pretrained`, `train.pretrained_file`, and whether `normalize.mean` and `std`
are given; the user's file or, unless DATA_MIRROR or download.mirror has torchvision's file, the internet.
Writes: `weights.safetensors` and `manifest.json` (`classifier.networks.pretrained`); without weights the latter alone.
Why: train needs no internet, and another `train.network` downloads no images again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from classifier.errors import UserError
from classifier.params import Params, load_params
from classifier.project.cli import paths, run_stage
from classifier.project.files import read_file, replacing
from classifier.sources.catalog import SourceFile
from classifier.sources.mirrors import configured_mirrors
from classifier.sources.transfer import fetch


def main(arguments: list[str]) -> None:
    params_path, folder = paths(arguments, "params", "pretrained")
    params = load_params(params_path)
    with replacing(folder) as new:
        provide(params, new)


def provide(params: Params, folder: Path) -> None:
    """Write the weights and their manifest into an empty folder."""
    # Imported here, since they import torch, which takes 2 s: most pipelines have no pretrained weights.
    network, pretrained = params.train.network, params.train.pretrained
    own_statistics = params.normalize.mean is not None or params.normalize.std is not None
    if pretrained is None:
        from classifier.networks.manifest import write_none

        write_none(folder, network)
        print("no pretrained weights: train.pretrained is null")
    elif pretrained == "file":
        from classifier.networks.pretrained import write_file

        path = Path(params.train.pretrained_file)
        write_file(folder, network, path, own_statistics)
        print(f"{network}: weights of {path}")
    else:
        from classifier.networks.pretrained import LARGEST, write_published
        from classifier.networks.zoo import Published

        published = Published.of(network)
        if published is None:
            raise UserError(
                f"train.pretrained: imagenet with train.network: {network}; allowed are names of torchvision.models "
                "(docs/networks.md), or train.pretrained: file"
            )
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            file = SourceFile(published.name, published.checksum)
            mirrors = [*configured_mirrors(params.download.mirror), published.base]
            deadline_s, retries = params.download.deadline_s, params.download.retries
            mirror = fetch(file, Path(temporary), mirrors, deadline_s=deadline_s, retries=retries, largest=LARGEST)
            content = read_file(Path(temporary) / published.name, LARGEST)
        write_published(folder, network, published, content, own_statistics)
        print(f"{network}: {published.name} from {mirror}")


if __name__ == "__main__":
    run_stage(main)
