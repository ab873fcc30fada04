"""Test accuracy of one or more models: `python -m benchmarks.accuracy DATA MODEL...`"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.contenders.stopwatch import say
from classifier.data.dataset import read_meta, read_split
from classifier.networks.inference import predict
from classifier.networks.model_dir import read_model

if __name__ == "__main__":
    data, models = Path(sys.argv[1]), sys.argv[2:]
    test = read_split(data, "test", read_meta(data))
    images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels)
    right = [predict(read_model(Path(model)), images, 1000).argmax(1) == labels for model in models]
    say(accuracies=[correct.double().mean().item() for correct in right])
