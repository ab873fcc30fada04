"""PyTorch's tensors, autograd and modules, in statements that assert what they show.

    python examples/tensors.py

A tensor is an array as in numpy that can also be on a GPU, and that can record how it was computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def creation() -> None:
    assert torch.zeros(2, 3).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert torch.ones(2, dtype=torch.int64).dtype == torch.int64
    assert torch.tensor([[1, 2], [3, 4]]).shape == (2, 2)  # from data; integers make int64
    assert torch.tensor([5.5, 3]).dtype == torch.float32  # others float32, where numpy has float64
    assert torch.arange(0, 10, 5).tolist() == [0, 5]
    assert torch.linspace(0, 1, 5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert torch.empty(5, 3).shape == (5, 3)  # whatever was in memory
    x = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.ones_like(x).dtype == x.new_ones(7).dtype == torch.float64  # the same type and device
    torch.manual_seed(0)
    first = torch.rand(2, 3)  # uniform in 0..1; randn: normal
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(2, 3))  # the same seed, the same numbers


def arithmetic() -> None:
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 30.0])
    assert (x + y).tolist() == torch.add(x, y).tolist() == [11, 22, 33]
    assert (x * y).tolist() == [10, 40, 90]  # element by element
    assert (x @ y).item() == 140  # the scalar product; item() is Python's number
    result = torch.empty(3)
    torch.add(x, y, out=result)  # into existing memory
    assert result.tolist() == [11, 22, 33]
    matrix = torch.arange(6.0).view(2, 3)
    assert (matrix @ x).tolist() == [8, 26]
    assert matrix.T.shape == (3, 2)
    assert matrix.sum().item() == 15
    assert matrix.mean(dim=0).tolist() == [1.5, 2.5, 3.5]  # over the rows
    assert matrix.max(dim=1).values.tolist() == [2, 5]
    assert matrix.argmax(dim=1).tolist() == [2, 2]
    assert (matrix + x).tolist() == [[1, 3, 5], [4, 6, 8]]  # broadcasting: x is added to every row
    assert (matrix > 2).tolist() == [[False, False, False], [True, True, True]]
    assert torch.cat([x, y]).shape == (6,)
    assert torch.stack([x, y]).shape == (2, 3)


def in_place() -> None:
    x = torch.tensor([1.0, 2.0])
    same = x
    x.add_(1)  # every method with _ at its end changes the tensor itself
    assert same.tolist() == [2, 3]
    x *= 2
    assert same.tolist() == [4, 6]
    x = x + 1  # a new tensor
    assert same.tolist() == [4, 6]
    same.zero_()
    same[1] = 7
    assert same.tolist() == [0, 7]


def views() -> None:
    x = torch.arange(12)
    rows = x.view(3, -1)  # -1: what is left, 4
    rows[0, 0] = 100
    assert x[0].item() == 100  # the same memory
    assert rows[:, 1].tolist() == [1, 5, 9]  # a slice is a view too
    rows[:, 1] = 0
    assert x.tolist() == [100, 0, 2, 3, 4, 0, 6, 7, 8, 0, 10, 11]
    assert not rows.T.is_contiguous()  # transposed without a copy, which view() cannot take
    assert rows.T.reshape(-1).tolist()[:3] == [100, 4, 8]  # reshape copies where it must
    assert rows[[2, 0]].tolist()[0] == [8, 0, 10, 11]  # a list of indices copies
    copy = x.clone()
    copy.zero_()
    assert x[0].item() == 100
    assert x[None].shape == x.unsqueeze(0).shape == (1, 12)
    assert rows.unsqueeze(0).squeeze(0).shape == rows.flatten(0).view(3, 4).shape == (3, 4)


def numpy_and_back() -> None:
    tensor = torch.ones(5)
    array = tensor.numpy()
    tensor.add_(1)
    assert array.tolist() == [2, 2, 2, 2, 2]  # the same memory, if the tensor is on the CPU
    back = torch.from_numpy(array)
    np.add(array, 1, out=array)
    assert back.tolist() == [3, 3, 3, 3, 3]
    assert torch.tensor(array).data_ptr() != back.data_ptr()  # torch.tensor copies
    assert torch.from_numpy(np.zeros(2)).dtype == torch.float64  # numpy's type stays


def device() -> None:
    x = torch.ones(3, device=DEVICE)  # created there
    y = torch.ones(3).to(DEVICE)  # copied to there
    assert (x + y).device.type == DEVICE.type  # both must be on the same device
    assert (x + y).to("cpu", torch.float64).tolist() == [2, 2, 2]
    assert (x + y).cpu().numpy().tolist() == [2, 2, 2]  # numpy needs the CPU


def autograd() -> None:
    """c = sum of (x * y + z): by hand in numpy, and from the record that PyTorch keeps."""
    random = np.random.default_rng(0)
    x, y, z = (random.normal(size=(3, 4)) for _ in range(3))
    a = x * y
    b = a + z
    c = b.sum()
    grad_c = 1.0  # from the end to the start, with the chain rule
    grad_b = grad_c * np.ones((3, 4))
    grad_a, grad_z = grad_b, grad_b
    grad_x, grad_y = grad_a * y, grad_a * x

    tx, ty, tz = (torch.from_numpy(each).requires_grad_() for each in (x, y, z))
    tc = (tx * ty + tz).sum()
    assert np.isclose(tc.item(), c)
    assert [leaf.grad for leaf in (tx, ty, tz)] == [None, None, None]  # a node stores its data, its gradient
    assert type(tc.grad_fn).__name__ == "SumBackward0"  # and the function that made it
    tc.backward()
    for leaf, by_hand in ((tx, grad_x), (ty, grad_y), (tz, grad_z)):
        assert leaf.grad is not None
        assert leaf.grad.tolist() == by_hand.tolist()
    (2 * tx).backward(torch.full((3, 4), 0.5))  # several outputs need the gradient with respect to each
    assert tx.grad is not None
    assert tx.grad.tolist() == (grad_x + 1).tolist()  # gradients add up until they are set to None
    with torch.no_grad():  # nothing is recorded here
        assert not (tx * 2).requires_grad
    assert not tx.detach().requires_grad  # the same data outside the graph


class Clamp(torch.autograd.Function):
    """A custom operation: ReLU with its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (x > 0)


def own_operation() -> None:
    x = torch.tensor([-1.0, 2.0], dtype=torch.float64, requires_grad=True)
    Clamp.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1]
    assert torch.autograd.gradcheck(Clamp.apply, (x,))  # against finite differences


def control_flow() -> None:
    """The graph is recorded anew with each forward pass, so Python's own loops and conditions may shape it."""
    x = torch.tensor(3.0, requires_grad=True)
    y = x
    while y < 50:
        y = y * x  # 9, 27, 81: x ** 4, in which one weight is used several times
    y.backward()
    assert y.item() == 81
    assert x.grad is not None
    assert x.grad.item() == 4 * 3**3


def modules() -> None:
    last = nn.Linear(3, 2)
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), last)  # a chain needs no class
    assert [name for name, _ in network.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert sum(parameter.numel() for parameter in network.parameters()) == 3 * (4 + 1) + 2 * (3 + 1)
    x, before = torch.ones(5, 4), last.bias.detach().clone()
    assert network(x).shape == (5, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(x).sum().backward()  # the gradient of the last bias is 1 for each of 5 rows
    optimizer.step()
    assert torch.allclose(last.bias, before - 0.1 * 5)
    optimizer.zero_grad()
    assert last.bias.grad is None
    twin = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    twin.load_state_dict(network.state_dict())  # names and weights, the content of a model's file
    assert torch.equal(twin(x), network(x))


def main() -> None:
    for lesson in (
        *(creation, arithmetic, in_place, views, numpy_and_back, device),
        *(autograd, own_operation, control_flow, modules),
    ):
        lesson()
        print(f"{lesson.__name__.replace('_', ' ')}: checked")


if __name__ == "__main__":
    main()
