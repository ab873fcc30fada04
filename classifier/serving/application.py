"""The HTTP application: images in, classes and probabilities out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from classifier.serving.answers import About, Options, Predictions, Refusal, about, classify, invoke, quick
from classifier.serving.bodies import image_files
from classifier.serving.manual import manual
from classifier.serving.metrics import Metrics
from classifier.serving.refusal import RefusedError
from classifier.serving.runtime import Model
from classifier.serving.state import State

PREDICT = "/predict"
DEFAULTS = Options()
PAGE = files("classifier.serving").joinpath("page.html").read_text(encoding="utf-8")
INLINE = "script-src 'unsafe-inline'; style-src 'unsafe-inline'"
PAGES = {"Content-Security-Policy": f"default-src 'none'; connect-src 'self'; img-src 'self' data: blob:; {INLINE}"}
REASONS = {
    400: "malformed: no image, or a form or JSON that cannot be read",
    408: "the body did not arrive in time",
    413: "too many bytes, pixels or images",
    415: "the Content-Type is not image/*, multipart/form-data or application/json",
    422: "not an image, a damaged image, or an invalid parameter",
    503: "the queue is full, or the model is not ready: try again after Retry-After seconds",
}
FILE = {"type": "string", "format": "binary"}
# Described here and read by `options_of`, because FastAPI takes as long for three parameters as the model for an image.
IMAGES = {
    "parameters": [
        {"name": name, "in": "query", "description": schema["description"], "schema": schema}
        for name, schema in Options.model_json_schema()["properties"].items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": FILE},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "array", "items": FILE}}}
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}}},
                }
            },
        },
    },
}
INVOCATION = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object", "properties": {"inputs": {"type": "array"}}}}},
    }
}


def application(start: Callable[[State], Any]) -> Observed:
    """Create the application. `start` returns a context manager that provides the model while the application runs."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.held = State()
        async with start(app.state.held):
            yield
        app.state.held.workers.stop()

    app = FastAPI(
        title="classifier",
        summary="Classifies images with one model, with the preprocessing of its training.",
        docs_url=None,  # FastAPI's page loads scripts from other sites
        redoc_url=None,
        lifespan=life,
    )

    def held() -> State:
        state: State = app.state.held
        return state

    def model_of(request: Request) -> Model:
        """The current model, which then answers this request and is named in its headers."""
        model: Model = held().current
        request.scope["model"] = model
        return model

    @app.post(
        PREDICT,
        response_model=Predictions,
        openapi_extra=IMAGES,
        responses=refusals(400, 408, 413, 415, 422, 503),
    )
    async def predict(request: Request) -> Response:
        """Classify the image in the body, the files of a form, or base64-encoded images."""
        state, options = held(), options_of(request)
        with state.bodies.place() as place:
            images = await image_files(request, await place.receive(request))
            model = model_of(request)
            works = [partial(classify, model, image, options) for image in images]
            if len(images) == 1 and quick(model, images[0]):
                predictions = [works[0]()]
            else:
                predictions = await state.workers.run(works)
        for prediction in predictions:
            state.metrics.images.labels(prediction["class"]).inc()
            state.metrics.unlike.inc(prediction["warning"] is not None)
        return JSONResponse({"model": model.identity, "predictions": predictions})

    @app.post("/invocations", openapi_extra=INVOCATION, responses=refusals(400, 408, 413, 415, 503))
    async def invocations(request: Request) -> Response:
        """Answer like MLflow's scoring server. Takes raw pixels 0..255 or base64-encoded image files."""
        state = held()
        try:
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise RefusedError(415, "the Content-Type is not application/json")
            with state.bodies.place() as place:
                body = await place.receive(request)
                (answer,) = await state.workers.run([partial(invoke, model_of(request), body)])
        except RefusedError as refused:
            kind = "BAD_REQUEST" if refused.status < 500 else "TEMPORARILY_UNAVAILABLE"
            answer = {"error_code": kind, "message": refused.reason}
            return JSONResponse(answer, refused.status, refused.headers)
        return JSONResponse(answer)

    @app.get("/model", response_model=About, responses=refusals(503))
    async def model(request: Request) -> Response:
        """The current model: its classes, origin and accuracy."""
        return JSONResponse(about(model_of(request)))

    @app.get("/health/live")
    @app.get("/ping", include_in_schema=False)  # as MLflow's scoring server has it
    async def live() -> Response:
        """200 while the process responds."""
        return JSONResponse({"live": True})

    @app.get("/health/ready", responses=refusals(503))
    async def ready(request: Request) -> Response:
        """200 once a model is loaded and predicts the same here as at its export."""
        return JSONResponse({"ready": True} | model_of(request).identity)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Counters for Prometheus."""
        return Response(held().metrics.text(), media_type=Metrics.content_type)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(PAGE, headers=PAGES)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(manual(app.openapi(), str(request.base_url).rstrip("/")), headers=PAGES)

    for kind in (RefusedError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, refusal)
    return Observed(app, predict)


def options_of(request: Request) -> Options:
    """Parse the query parameters of a request. Raises RefusedError (422)."""
    try:
        return Options.model_validate(dict(request.query_params)) if request.query_params else DEFAULTS
    except ValidationError as error:
        first = error.errors()[0]
        raise RefusedError(422, f"{first['loc'][-1]}: {first['input']!r:.80}: {first['msg']}") from None


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Refusal, "description": REASONS[status]} for status in statuses}


async def refusal(request: Request, error: Exception) -> Response:
    """The response to a request that raised an error: one reason."""
    match error:
        case RefusedError():
            refused = error
        case HTTPException():
            refused = RefusedError(error.status_code, error.detail)
        case _:  # the client has disconnected and does not read this
            refused = RefusedError(400, "the body is not complete")
    return JSONResponse({"error": refused.reason}, refused.status, refused.headers)


class Observed:
    """Counts every request, and adds the model's headers to every response.

    Requests to /predict bypass FastAPI's routing, which takes as long as a small network.
    """

    def __init__(self, app: FastAPI, predict: Callable[[Request], Awaitable[Response]]) -> None:
        self.app, self.predict = app, predict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state: State = self.app.state.held
        direct = scope["path"] == PREDICT and scope["method"] == "POST"
        start, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                model = scope.get("model") or state.model
                if model:
                    message["headers"] = [*message["headers"], *model.headers]
            await send(message)

        try:
            app = await self._predicted(Request(scope, receive)) if direct else self.app
            await app(scope, receive, sending)
        finally:
            path = PREDICT if direct else getattr(scope.get("route"), "path", "unknown")
            state.metrics.observe(path, status, time.perf_counter() - start)

    async def _predicted(self, request: Request) -> Response:
        try:
            return await self.predict(request)
        except (RefusedError, ClientDisconnect) as error:
            return await refusal(request, error)
