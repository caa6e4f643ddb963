"""The ways a convolution can run, each of which has to keep PyTorch's contract."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

DEVICES = {
    "operators": "cpu",  # The operators with PyTorch's arithmetic: all that is around a kernel.
    "simulator": "cpu",  # ConvSmith's kernels on the CPU.
    "cuda": "cuda",  # ConvSmith's kernels on a GPU.
}


@dataclass
class Backend:
    """One way to run, and how many calls were handed to PyTorch's functions all the same."""

    name: str
    device: str
    handed_over: int = 0


def backends(*names: str) -> pytest.MarkDecorator:
    """Parametrise a test over some of the ways to run."""
    marked = [
        pytest.param(name, marks=pytest.mark.gpu if DEVICES[name] == "cuda" else ())
        for name in names
    ]
    return pytest.mark.parametrize("backend", marked, indirect=True)
