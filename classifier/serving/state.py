"""The server's state: the current model, the workers, and the bodies of requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

from classifier.serving.bodies import Bodies
from classifier.serving.metrics import Metrics
from classifier.serving.refusal import RefusedError
from classifier.serving.runtime import Model
from classifier.serving.workers import Workers, cores

QUEUE = 256  # images that are waiting or being computed


class State:
    """Created in the event loop. A request reads `current` once and keeps this model even if another is loaded."""

    def __init__(self) -> None:
        self.model: Model | None = None
        self.bodies = Bodies()
        self.workers = Workers(cores(), QUEUE)
        self.metrics = Metrics(lambda: self.workers.waiting, lambda: self.bodies.held)

    @property
    def current(self) -> Model:
        """The current model. Raises RefusedError (503) while there is none."""
        if self.model is None:
            raise RefusedError(503, "the model is not ready yet: try again")
        return self.model

    async def take(self, path: Path) -> None:
        """Make an ONNX file the current model, after its warm-up.

        Raises UserError if its prediction of the warm-up image is not the stored one; the previous model then stays.
        """

        def ready() -> Model:
            model = Model.read(path)
            model.warm_up()
            return model

        model = await asyncio.to_thread(ready)
        if self.model is not None:
            self.metrics.changes.inc()
        self.model = model
        self.metrics.model.info({name: value or "" for name, value in model.identity.items()})
