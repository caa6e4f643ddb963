"""The ways a convolution can run, each of which has to keep PyTorch's contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pytest

import convsmith
from convsmith import Precision, execute, functional
from convsmith.bench.switches import precision_class

_DEVICES = {
    "operators": "cpu",  # The operators with PyTorch's arithmetic: all that is around a kernel.
    "simulator": "cpu",  # ConvSmith's kernels on the CPU.
    "cuda": "cuda",  # ConvSmith's kernels on a GPU.
}


@dataclass
class Backend:
    """One way to run, and how many calls were handed to PyTorch's conv2d all the same."""

    name: str
    device: str
    handed_over: int = 0


def backends(*names: str) -> pytest.MarkDecorator:
    """Parametrise a test over some of the ways to run."""
    marked = [
        pytest.param(name, marks=pytest.mark.gpu if _DEVICES[name] == "cuda" else ())
        for name in names
    ]
    return pytest.mark.parametrize("backend", marked, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Makes every convolution that is not handed to PyTorch run as the parameter says."""
    name: str = request.param
    chosen = Backend(name, _DEVICES[name])
    way: AbstractContextManager[None] = nullcontext()
    if name == "operators":
        monkeypatch.setattr(execute, "takes", lambda device_type: True)
        monkeypatch.setattr(execute, "prefers_torch", lambda *arguments: False)
    elif name == "simulator":
        way = convsmith.simulator()
    torch_conv2d = functional._torch_conv2d

    def counted(*arguments):
        chosen.handed_over += 1
        return torch_conv2d(*arguments)

    monkeypatch.setattr(functional, "_torch_conv2d", counted)
    functional._routes.clear()
    # Our kernels, whatever the planner would choose.
    kernel = nullcontext() if name == "operators" else convsmith.use_kernel("direct")
    # It is PyTorch's float32 that is compared with, not its TF32.
    with way, kernel, precision_class(Precision.FLOAT32):
        yield chosen
    functional._routes.clear()
