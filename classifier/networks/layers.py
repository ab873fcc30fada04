"""The costs of a network: parameters, multiply-adds and memory, in total and per layer."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from classifier.networks.model import Classifier, parameter_count
from classifier.networks.registry import NetworkSpec

COLUMNS = ["layer", "kind", "output", "parameters", "multiply_adds"]


@dataclass(frozen=True)
class Layer:
    """A module with parameters or multiply-adds of its own; those of its submodules do not count."""

    name: str
    kind: str  # its class
    output: tuple[int, ...]  # shape for one image
    parameters: int
    multiply_adds: int  # for one image


@dataclass(frozen=True)
class Costs:
    """The costs of a network for images of one size."""

    layers: Sequence[Layer]
    parameters: int
    multiply_adds: int  # of convolutions and matrix products, for one image
    weights_bytes: int  # of parameters and buffers
    activations_bytes: int  # kept for the backward pass, for one image

    def summary(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "layers"}

    def table(self) -> bytes:
        """The layers as CSV."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for layer in self.layers:
            shape = "x".join(map(str, layer.output))
            writer.writerow([layer.name, layer.kind, shape, layer.parameters, layer.multiply_adds])
        return text.getvalue().encode()


def costs_of(classifier: Classifier, spec: NetworkSpec) -> Costs:
    """Measure with black images. Changes the classifier's running statistics."""
    images = torch.zeros(2, spec.channels, spec.size, spec.size, dtype=torch.uint8)
    with torch.random.fork_rng(devices=[]):
        layers, kept = _layers(classifier, images[:1]), _kept_bytes(classifier.train(), images)
    own = [*classifier.network.parameters(), *classifier.network.buffers()]
    return Costs(
        layers,
        parameters=parameter_count(classifier.network),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in own),
        activations_bytes=kept // len(images),
    )


def _layers(classifier: Classifier, images: Tensor) -> list[Layer]:
    network = classifier.eval().network
    with _Counter(network) as counter, torch.no_grad(), _without_fast_path():
        classifier(images)
    return list(counter.layers())


def _kept_bytes(classifier: Classifier, images: Tensor) -> int:
    """Bytes of all tensors that are kept for the backward pass, except parameters."""
    parameters = {each.untyped_storage().data_ptr() for each in classifier.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = classifier(images)  # keeps the graph, and with it the memory
    del logits
    return sum(kept.values())


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """In evaluation mode, the fast path of attention is a single operation, in which nothing can be counted."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Counter(TorchFunctionMode):
    """Counts the multiply-adds of each called function for the module that calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.modules = dict(network.named_modules())
        self.counts = dict.fromkeys(self.modules, 0)
        self.outputs: dict[str, tuple[int, ...]] = {}
        self.running = [""]
        for name, module in self.modules.items():
            module.register_forward_pre_hook(lambda *_, name=name: self.running.append(name))
            module.register_forward_hook(lambda _, inputs, output, name=name: self._end(name, output))

    def _end(self, name: str, output: Any) -> None:
        self.running.pop()
        first = output[0] if isinstance(output, tuple) else output
        self.outputs[name] = tuple(first.shape[1:]) if isinstance(first, Tensor) else ()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if counted := COUNTED.get(func.__name__):
            self.counts[self.running[-1]] += counted(args, kwargs or {}, result)
        return result

    def layers(self) -> Iterator[Layer]:
        for name, module in self.modules.items():
            parameters = sum(each.numel() for each in module.parameters(recurse=False))
            if parameters or self.counts[name]:
                yield Layer(name, type(module).__name__, self.outputs.get(name, ()), parameters, self.counts[name])


def _convolution(args: Sequence[Any], kwargs: dict[str, Any], result: Tensor) -> int:
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    return int(result.numel() * prod(weight.shape[1:]))


def _product(args: Sequence[Any], kwargs: dict[str, Any], result: Tensor) -> int:
    """A product of `(..., M, K)` and `(..., K, N)`, or a linear layer with input `(..., K)`."""
    first = args[0] if args else kwargs["input"]
    return int(result.numel() * first.shape[-1])


def _added_product(args: Sequence[Any], kwargs: dict[str, Any], result: Tensor) -> int:
    """addmm and baddbmm, whose first argument is added to the product."""
    return int(result.numel() * args[1].shape[-1])


def _attention(args: Sequence[Any], kwargs: dict[str, Any], result: Tensor) -> int:
    query, key, value = (args[n] if len(args) > n else kwargs[name] for n, name in enumerate(("query", "key", "value")))
    scores = prod(query.shape[:-1]) * key.shape[-2]
    return int(scores * (query.shape[-1] + value.shape[-1]))


def _multi_head_attention(args: Sequence[Any], kwargs: dict[str, Any], result: tuple[Tensor, Any]) -> int:
    """Four projections and two products: query `(L, N, E)`, key and value `(S, N, E)`."""
    query, key, value = args[:3]
    embedded = result[0].shape[-1]
    projected = sum(each.numel() for each in (query, key, value, result[0])) * embedded
    return int(projected + 2 * query.shape[0] * key.numel() // key.shape[-1] * embedded)


def _einsum(args: Sequence[Any], kwargs: dict[str, Any], result: Tensor) -> int:
    """The product of the sizes of all indices, as in `torch.einsum("bhid,bhjd->bhij", first, second)`."""
    equation, *tensors = args
    inputs = equation.replace(" ", "").partition("->")[0].split(",")
    assert "..." not in equation, f"multiply-adds of einsum {equation!r} are not known"
    sizes = {
        index: size
        for indices, each in zip(inputs, tensors, strict=True)
        for index, size in zip(indices, each.shape, strict=True)
    }
    return prod(sizes.values())


COUNTED: dict[str, Callable[[Sequence[Any], dict[str, Any], Any], int]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("linear", "matmul", "__matmul__", "mm", "bmm"), _product),
    **dict.fromkeys(("addmm", "baddbmm"), _added_product),
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    "multi_head_attention_forward": _multi_head_attention,
}
