"""What a stored model takes and refuses, in Python and through MLflow's scoring server."""

import warnings

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
import torch

from classifier.serving.pyfunc import InputError, raw_pixels
from tests.recorded import Workspace, get_run
from tests.servers import model_server

WANTED = "expected images of shape (N, 1, 32, 32), uint8 in 0..255"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), dtype=np.uint8)
NORMALIZED = (PIXELS / 255 - 0.1307) / 0.3081


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        read_only(PIXELS),  # as np.asarray(PIL.Image) is
        PIXELS[::-1].copy()[::-1],
        PIXELS.astype(np.int64),
        PIXELS.astype(np.float32),
        PIXELS.tolist(),
        PIXELS.astype(float).tolist(),
        torch.from_numpy(PIXELS),
        {"images": PIXELS},
        pd.DataFrame({"images": PIXELS.tolist()}),
    ],
    ids=lambda images: type(images).__name__,
)
def test_whole_numbers_are_pixels_in_any_form(images):
    with warnings.catch_warnings(action="error"):  # PyTorch's, of an array that it may not write to
        tensor = torch.from_numpy(raw_pixels(images, 1))
    assert tensor.dtype == torch.uint8
    assert torch.equal(tensor, torch.from_numpy(PIXELS))


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (PIXELS / 255, "neither divided by 255 nor normalized; got float64 from 0 to 1"),
        ((PIXELS / 255).tolist(), "neither divided by 255 nor normalized; got float64 from 0 to 1"),
        (torch.from_numpy(NORMALIZED).float(), "neither divided by 255 nor normalized; got float32 from -0.4242 to 2."),
        ((PIXELS > 127).astype(float), "neither divided by 255 nor normalized; got float64 from 0 to 1"),
        (PIXELS.astype(int) - 1, "neither divided by 255 nor normalized; got int64 from -1 to 254"),
        (PIXELS.astype(int) + 1, "neither divided by 255 nor normalized; got int64 from 1 to 256"),
        (np.where(PIXELS > 9, PIXELS, np.nan), "neither divided by 255 nor normalized; got float64 from nan to nan"),
        (PIXELS > 127, "got bool"),
        (PIXELS.astype(str), "got <U3"),
        (PIXELS[0, 0], "got shape (32, 32)"),
        (PIXELS.reshape(3, 32, 32, 1), "got shape (3, 32, 32, 1)"),
        (np.repeat(PIXELS, 3, axis=1), "got shape (3, 3, 32, 32)"),
        (pd.DataFrame(PIXELS.reshape(3, -1)), "got shape (3, 1024)"),
        ({"a": PIXELS, "b": PIXELS}, "got shape ()"),
        ([[1, 2], [3]], "got lists of unequal lengths"),
    ],
)
def test_everything_else_is_refused_in_one_line(images, got):
    with pytest.raises(InputError) as refused:
        raw_pixels(images, 1)
    message = str(refused.value)
    assert message.startswith(WANTED)
    assert got in message
    assert len(message) < 160
    assert "\n" not in message


def test_of_zeros_and_ones_integers_are_pixels_and_floats_could_be_scaled():
    drawing = (PIXELS > 127).astype(np.uint8)
    for images in (drawing, drawing.tolist(), np.zeros_like(PIXELS, float)):
        assert np.array_equal(raw_pixels(images, 1), images)
    with pytest.raises(InputError):
        raw_pixels(drawing.astype(float).tolist(), 1)


def test_no_images_give_no_rows():
    assert raw_pixels(PIXELS[:0], 1).shape == (0, 1, 32, 32)


FORMS = {  # what `/invocations` reads as JSON
    "inputs": lambda rows: {"inputs": rows},
    "inputs, named": lambda rows: {"inputs": {"images": rows}},
    "instances": lambda rows: {"instances": rows},
    "instances, named": lambda rows: {"instances": [{"images": row} for row in rows]},
    "dataframe_split": lambda rows: {"dataframe_split": {"columns": ["images"], "data": [[row] for row in rows]}},
    "dataframe_records": lambda rows: {"dataframe_records": [{"images": row} for row in rows]},
}


@pytest.mark.slow
def test_a_served_model_answers_whole_numbers_and_refuses_scaled_ones_in_every_form(workspace):
    (output,) = get_run(Workspace().train()).outputs.model_outputs
    uri = f"models:/{output.model_id}"
    predicted = mlflow.pyfunc.load_model(uri).predict(PIXELS)["predicted"].tolist()
    with model_server(uri, workspace / "server.log") as address:

        def ask(images, form):
            return requests.post(f"{address}/invocations", json=FORMS[form](images.tolist()), timeout=60)

        for form in FORMS:
            for images in (PIXELS, PIXELS.astype(float)):
                answer = ask(images, form)
                assert answer.status_code == 200, (form, answer.text)
                assert [row["predicted"] for row in answer.json()["predictions"]] == predicted
            for images in (PIXELS / 255, NORMALIZED, PIXELS.astype(int) + 1, PIXELS[:, 0]):
                answer = ask(images, form)
                assert answer.status_code == 400, (form, answer.text)
                assert answer.json().keys() == {"error_code", "message"}
                assert answer.json()["message"].startswith(WANTED)
                assert "\n" not in answer.json()["message"]
        flat = "\n".join(",".join(map(str, row)) for row in [range(1024), *PIXELS.reshape(3, -1)])
        answer = requests.post(f"{address}/invocations", flat, headers={"Content-Type": "text/csv"}, timeout=60)
        assert answer.status_code == 400
        assert answer.json()["message"].startswith(WANTED)
