"""Makes modules of this folder importable from the tests in it, and says what they run on."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from convolutions import on_poisoned_memory
from tilings import prefer


@pytest.fixture(
    scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["sim", "gpu"]
)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device whose convolutions all run on the module's FAMILY, from poisoned memory."""
    with on_poisoned_memory(request.module.FAMILY):
        yield request.param


@pytest.fixture(params=["tf32", "float32"])
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The class that float32 convolutions are in."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", request.param == "tf32")
    return request.param


@pytest.fixture(params=[1, 2], ids=["single", "halves"])
def halves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many halves the tiles of an implicit_gemm have, where they may have as many."""
    prefer(monkeypatch, lambda shape: shape.count == request.param)
    return int(request.param)


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of an implicit_gemm go on from row to row, where they may."""
    prefer(monkeypatch, lambda shape: shape.is_flat)
