"""What a stored model takes and refuses, in Python and through MLflow's scoring server."""

import base64

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests

from classifier.serving.pyfunc import RefusedInputError, ServedClassifier
from tests.recorded import Workspace, get_run
from tests.servers import model_server
from tests.serving.conftest import png

WANTED = "expected images of shape (N, 1, 32, 32), uint8 in 0..255"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), dtype=np.uint8)
NORMALIZED = (PIXELS / 255 - 0.1307) / 0.3081


def test_a_data_frame_has_an_image_per_row(served):
    model = ServedClassifier(served.folder / "models/classifier")
    table = model.predict(pd.DataFrame({"images": PIXELS.tolist()}))
    assert table.equals(model.predict(PIXELS))
    assert list(table) == ["predicted", *"0123456789"]
    files = [png(image) for image in PIXELS]
    assert model.predict(pd.DataFrame({"images": files})).equals(model.predict(files))
    with pytest.raises(RefusedInputError, match=r"^expected images .* got shape \(3, 1024\)$") as refused:
        model.predict(pd.DataFrame(PIXELS.reshape(3, -1)))
    assert refused.value.get_http_status_code() == 400


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
    loaded = mlflow.pyfunc.load_model(uri)
    predicted = loaded.predict(PIXELS)["predicted"].tolist()
    named = loaded.predict([png(image) for image in PIXELS])["predicted"].tolist()
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
        files = [base64.b64encode(png(image)).decode() for image in PIXELS]
        answer = requests.post(f"{address}/invocations", json={"inputs": files}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert [row["predicted"] for row in answer.json()["predictions"]] == named
        flat = "\n".join(",".join(map(str, row)) for row in [range(1024), *PIXELS.reshape(3, -1)])
        answer = requests.post(f"{address}/invocations", flat, headers={"Content-Type": "text/csv"}, timeout=60)
        assert answer.status_code == 400
        assert answer.json()["message"].startswith(WANTED)
