"""reports/evaluate/report.html: what it says, that it needs nothing, and that names cannot become markup."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classifier.evaluation.corruptions import KINDS
from classifier.evaluation.report import write_evaluation
from tests.evaluation.samples import evaluation_of, noisy_predictions, params, predictions_of

HOSTILE = ["<script>alert(1)</script>", "\"><img src=x onerror='alert(2)'>", "{{ 7 * 7 }}", "&amp; déjà 猫"]


class Tags(HTMLParser):
    """The tags, their attributes and the text of a document; closing tags must fit."""

    def __init__(self, document: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " if tag in ("td", "th", "p", "figcaption", "caption", "li", "h1", "h2", "div") else ""

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path, predictions: Any, evaluated: dict[str, Any] | None = None, **chosen: Any) -> Tags:
    write_evaluation(folder / "a", evaluation_of(predictions, **evaluated or {}), params(**chosen))
    return Tags((folder / "a/report.html").read_text(encoding="utf-8"))


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Tags:
    predictions = noisy_predictions(60, HOSTILE)
    right = np.ones((40, 60), dtype=bool)
    paths = [f"test/{HOSTILE[number % 4]}/{number}.jpg" for number in range(60)]
    evaluated = {"validation": noisy_predictions(30, HOSTILE, seed=8), "right": right, "paths": paths}
    return page_of(tmp_path_factory.mktemp("hostile"), predictions, evaluated, corruptions=list(KINDS), misclassified=9)


def test_names_and_paths_are_text(hostile: Tags) -> None:
    assert not {tag for tag, _ in hostile.tags} & {"script", "iframe", "object", "form", "input", "base"}
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]
    for name in HOSTILE:
        assert name in hostile.text
        assert f"test/{name}/" in hostile.text


def test_it_needs_no_other_file_and_no_network(hostile: Tags) -> None:
    sources = [attributes.get("src") or "" for tag, attributes in hostile.tags if tag == "img"]
    assert len(sources) == 4 + 9  # the charts and the misclassified images
    for source in sources:
        assert source.startswith("data:image/png;base64,")
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).verify()
    links = [attributes["href"] or "" for tag, attributes in hostile.tags if tag in ("a", "link")]
    assert all(link.startswith(("#", "data:,")) or link == "https://example.org/digits" for link in links)
    policy = [attributes["content"] or "" for tag, attributes in hostile.tags if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_every_link_within_it_leads_somewhere(hostile: Tags) -> None:
    inner = {(attributes["href"] or "")[1:] for tag, attributes in hostile.tags if tag == "a"} - {
        "ttps://example.org/digits"
    }
    assert inner == {attributes["id"] for _, attributes in hostile.tags if "id" in attributes}
    assert inner == {
        "training",
        "network",
        "misclassified",
        "confusion",
        "classes",
        "calibration",
        "robustness",
        "data",
        "lineage",
    }


def test_it_says_how_good_the_model_is_and_what_it_was_trained_on(tmp_path: Path) -> None:
    predictions = predictions_of(np.arange(60) % 3, ["cat", "dog", "emu"], wrong=[0, 1, 2])
    text = words(page_of(tmp_path, predictions).text)
    assert "lenet5 on digits" in text
    assert "95.00% test accuracy, 95% interval 86.30% to 98.29%: 57 of 60 images are classified correctly" in text
    assert "61,706 parameters, trained on 60 images of 3 classes for 2 epochs" in text
    assert "100 optimizer steps over 3,200 images, learning rate up to 0.1, seed 0" in text
    assert "cat dog 1 5.0%" in text
    assert "61,706 parameters (0.247 MB), 416,520 multiply-adds for an image of 32 × 32 pixels" in text
    assert "conv1 Conv2d 6 × 28 × 28 156 117,600" in text
    assert "2" * 64 in text
    assert "Without a validation split, no temperature was fitted." in text
    assert "Not measured: evaluate.corruptions in params.yaml is empty." in text


def test_it_says_how_the_probabilities_can_be_corrected(tmp_path: Path) -> None:
    labels = np.arange(60) % 3
    validation = predictions_of(labels, ["cat", "dog", "emu"], wrong=range(20))
    text = words(page_of(tmp_path, predictions_of(labels, ["cat", "dog", "emu"]), {"validation": validation}).text)
    assert re.search(r"A temperature of \d\.\d+, fitted on the 60 validation images, makes it \d+\.\d\d%", text)
    assert "the model is too sure" in text
    assert "None of 60 test images is misclassified." in text


def test_classes_without_test_images_are_named(tmp_path: Path) -> None:
    predictions = predictions_of(np.array([0, 1, 0, 1]), ["cat", "dog", "emu"])
    text = words(page_of(tmp_path, predictions).text)
    assert "1 of 3 classes have no test images (emu)" in text
    assert "emu 0 no test images never predicted" in text


def test_how_files_became_pixels_and_what_was_excluded_is_said(tmp_path: Path) -> None:
    evaluation = evaluation_of(predictions_of(np.array([0, 1]), ["cat", "dog"]))
    excluded = {f"cat/{number:02}.jpg": "truncated" for number in range(12)}
    data = evaluation.data.model_copy(update={"decoder": "Pillow 12.0", "excluded": excluded})
    text = words(page_of(tmp_path, evaluation.predictions, {"data": data}).text)
    assert "The files were decoded by Pillow 12.0 and fitted to the square by padding." in text
    assert "12 files were excluded: cat/00.jpg: truncated cat/01.jpg: truncated" in text
    assert "cat/10.jpg" not in text
    assert "and 2 more" in text


def test_of_many_classes_the_weakest_are_listed(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(61)]
    predictions = predictions_of(np.repeat(np.arange(61), 2), names, wrong=[80, 81])
    page = page_of(tmp_path, predictions)
    assert "the 30 weakest of 61 classes (per_class.csv)" in words(page.text)
    classes = words(page.text).partition("(per_class.csv)")[2].partition("Calibration When")[0]
    assert re.findall(r"class (\d+)", classes)[:2] == ["40", "0"]
    assert "the first 60 of 61 classes" in words(page.text)


def test_it_knows_no_machine_and_no_time(hostile: Tags) -> None:
    import platform
    import time

    assert platform.node() not in hostile.text or len(platform.node()) < 4
    assert time.strftime("%Y-%m") not in hostile.text
    assert str(Path.home()) not in hostile.text
