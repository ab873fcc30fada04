"""Serve a trained model by HTTP, with a page to try it on."""

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
            help="like --model, and take over what this means later, such as the next models:/classifier@champion",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="address; 0.0.0.0: every network of this machine")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one", min=0, max=65535)] = 8000,
) -> None:
    """Serve a trained model by HTTP, with a page to try it on.

    POST /predict takes images as they are: as the body, as files of a form, or as base64 in JSON. POST /invocations
    answers as MLflow's scoring server does. /docs describes all of it. onnxruntime computes; a model that was never
    exported is exported first, once.

    Example: classifier serve --port 8000
    """
    from classifier.serving.references import here
    from classifier.serving.server import serve as run  # slow: fastapi, onnxruntime

    reference = watch or model
    run((None if watch else here(reference)) or reference, host, port, watch=watch is not None)
