"""The schemas of the responses, as in the OpenAPI description, and the functions that compute them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field

from classifier.data.pixels import BadImageError, TooLargeError, decode
from classifier.data.ranges import unlike
from classifier.serving.arrays import InputError, pixels_of
from classifier.serving.bodies import File, read_json
from classifier.serving.card import Accuracy
from classifier.serving.refusal import RefusedError
from classifier.serving.runtime import Model

FILL = 20 / 28  # of MNIST's figures, and of data sets that follow its example
TOUCHED = 0.02  # brightness of the border above which all figures reach the border


QUICK_S = 0.001  # the model's time for one image
QUICK_BYTES, QUICK_PIXELS = 8 << 10, 1 << 14  # of a file
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"  # followed by width and height


class Options(BaseModel):
    """The query parameters of /predict."""

    top: int = Field(5, ge=1, le=10_000, description="classes per image, the most probable first")
    invert: bool = Field(False, description="take the negative of the image")
    show_input: bool = Field(False, description="add the model's input to the response")


class Ranked(BaseModel):
    """A class and its probability."""

    name: str = Field(alias="class")
    probability: float


class Prediction(Ranked):
    """The prediction for one image."""

    file: str
    top: list[Ranked] = Field(description="the classes with the highest probabilities, highest first")
    warning: str | None = Field(description="how the image differs from the training images, or null")
    input: str | None = Field(None, description="the model's input as a PNG in a data: URL")


class Identity(BaseModel):
    """The model that answered, as in the response headers Model-Run-Id and Model-Weights-Sha256."""

    run_id: str | None
    weights_sha256: str


class Predictions(BaseModel):
    """The response of /predict."""

    model: Identity
    predictions: list[Prediction]


class About(Identity):
    """The response of /model. Values that were not recorded are null."""

    dataset: str
    architecture: str
    classes: list[str]
    channels: int
    size: int = Field(description="height and width of the model's input in pixels")
    light_on_dark: bool = Field(description="whether the training images are light figures on a dark background")
    fill: float = Field(description="the size of a figure as a fraction of the frame's side, to scale drawings")
    git_commit: str | None
    data_digest: str | None = Field(description="DVC's hash of data/normalized")
    accuracy: Accuracy | None = Field(description="on the test split, with its confidence interval")


class Refusal(BaseModel):
    """The response to a refused request: one reason."""

    error: str


def about(model: Model) -> dict[str, Any]:
    """Describe a model as `About`."""
    card = model.card
    border = (card.ranges or {}).get("border")
    return model.identity | {
        "dataset": card.dataset,
        "architecture": card.architecture,
        "classes": card.class_names,
        "channels": card.preprocessing.channels,
        "size": card.preprocessing.image_size,
        "light_on_dark": border is None or sum(border) < 1,
        "fill": FILL if border is None or min(border[0], 1 - border[1]) < TOUCHED else 1.0,
        "git_commit": card.git_commit,
        "data_digest": card.data_digest,
        "accuracy": card.accuracy.model_dump() if card.accuracy else None,
    }


def quick(model: Model, file: File) -> bool:
    """Whether the prediction takes no longer than waking up a thread for it: a small PNG and a small network."""
    content = file.content
    if model.seconds > QUICK_S or len(content) > QUICK_BYTES or not content.startswith(PNG):
        return False
    width, height = (int.from_bytes(content[start : start + 4]) for start in (16, 20))
    return width * height <= QUICK_PIXELS and content.count(b"IHDR") == 1


def classify(model: Model, file: File, options: Options) -> dict[str, Any]:
    """Classify one file, as a `Prediction`. Raises RefusedError (413, 422)."""
    card = model.card
    preprocessing = card.preprocessing
    if options.invert:
        preprocessing = preprocessing.model_copy(update={"invert": not preprocessing.invert})
    try:
        image = decode(file.content, preprocessing)
    except TooLargeError as error:
        raise RefusedError(413, f"{file.name}: {error}") from None
    except BadImageError as error:
        raise RefusedError(422, f"{file.name}: {error}") from None
    probabilities = model.probabilities(image)
    order = np.argsort(-probabilities, kind="stable")[: options.top]
    ranked = [{"class": card.class_names[index], "probability": float(probabilities[index])} for index in order]
    warning = unlike(image, card.ranges, preprocessing.margin) if card.ranges else None
    answer = ranked[0] | {"file": file.name, "top": ranked, "warning": warning}
    return answer | {"input": as_png(image)} if options.show_input else answer


def as_png(image: np.ndarray) -> str:
    """An image `(C, H, W) uint8` as a data: URL."""
    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def invoke(model: Model, body: bytes) -> dict[str, Any]:
    """Answer the JSON `body` like MLflow's scoring server. Raises RefusedError (400)."""
    card = model.card
    try:
        images = pixels_of(_inputs(read_json(body)), card.preprocessing)
    except (InputError, BadImageError) as error:
        raise RefusedError(400, str(error)) from None
    rows = []
    for image in images:
        probabilities = model.probabilities(image)
        named = dict(zip(card.class_names, map(float, probabilities), strict=True))
        rows.append({"predicted": card.class_names[probabilities.argmax()], **named})
    return {"predictions": rows}


def _inputs(values: Any) -> Any:
    """Get the images from any of the input formats of MLflow's scoring server."""
    match values:
        case {"inputs": images}:
            return images
        case {"instances": list(rows)} | {"dataframe_records": list(rows)}:
            return [next(iter(row.values())) if isinstance(row, dict) and len(row) == 1 else row for row in rows]
        case {"dataframe_split": {"data": list(rows)}}:
            return [row[0] if isinstance(row, list) and len(row) == 1 else row for row in rows]
    raise RefusedError(400, "expected an object with inputs, instances, dataframe_split or dataframe_records")
