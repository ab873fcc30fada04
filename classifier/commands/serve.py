"""Serve a trained model by HTTP, with a page to try it."""

from __future__ import annotations

from typing import Annotated

import typer

from classifier.serving.references import DIRECTORY, FORMS, typed


def serve(
    model: Annotated[str, typer.Option(parser=typed, metavar="MODEL", help=f"{FORMS}, or an ONNX file")] = DIRECTORY,
    watch: Annotated[
        str | None,
        typer.Option(
            parser=typed,
            metavar="MODEL",
            help="like --model, and switch to each new model, such as the next models:/classifier@champion",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0: all networks")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0: any free port", min=0, max=65535)] = 8000,
) -> None:
    """Serve a trained model by HTTP, with a page to try it.

    POST /predict takes image files: as the body, as files of a form, or as base64 in JSON. POST /invocations is
    compatible with MLflow's scoring server. /docs describes all requests. Predictions are computed by onnxruntime; a
    model without an ONNX file is exported first, once.

    Example: classifier serve --port 8000
    """
    from classifier.serving.references import here
    from classifier.serving.server import serve as run  # slow: fastapi, onnxruntime

    reference = watch or model
    run((None if watch else here(reference)) or reference, host, port, watch=watch is not None)
