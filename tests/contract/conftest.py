"""The fixture `backend`: every convolution of a test runs in one of the ways of running.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest
from running import DEVICES, Backend

import convsmith
from convsmith import Precision, execute, functional
from convsmith.bench.switches import precision_class


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Makes every convolution that is not handed to PyTorch run as the parameter says."""
    name: str = request.param
    chosen = Backend(name, DEVICES[name])
    way: AbstractContextManager[None] = nullcontext()
    if name == "operators":
        monkeypatch.setattr(execute, "takes", lambda device_type: True)
        monkeypatch.setattr(execute, "prefers_torch", lambda *arguments: False)
        monkeypatch.setattr(execute, "prefers_torch_transposed", lambda *arguments: False)
    elif name == "simulator":
        way = convsmith.simulator()
    for function in ("_torch_conv2d", "_torch_conv_transpose2d"):
        pytorchs = getattr(functional, function)

        def counted(*arguments, pytorchs=pytorchs):
            chosen.handed_over += 1
            return pytorchs(*arguments)

        monkeypatch.setattr(functional, function, counted)
    functional._routes.clear()
    # Our kernels, whatever the planner would choose.
    kernel = nullcontext() if name == "operators" else convsmith.use_kernel("direct")
    # It is PyTorch's float32 that is compared with, not its TF32.
    with way, kernel, precision_class(Precision.FLOAT32):
        yield chosen
    functional._routes.clear()
