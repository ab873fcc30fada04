from ruamel.yaml import YAML

from classifier.repository import outputs
from tests.samples import ROOT


def test_they_are_what_dvc_yaml_names():
    pipeline = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    named = [outputs.DATA, outputs.MODEL, outputs.TRAINING, outputs.EVALUATION]
    made = {each for stage in pipeline.values() for each in stage["outs"]}
    assert {path.as_posix() for path in named} <= made
