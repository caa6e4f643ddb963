"""Random layers are drawn the same again, can all be measured, and are measured as suites are."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from convsmith.bench.contestants import Peer
from convsmith.bench.selections import Selection
from convsmith.bench.suites import SUITES, Layer, Layout
from convsmith.spec import Direction, Precision

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "random_layers.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the script defines; the suite that it enters is gone afterwards."""
    monkeypatch.setitem(SUITES, "random", ())
    return runpy.run_path(str(SCRIPT))


def test_a_seed_gives_the_same_layers(script: dict[str, Any]) -> None:
    layers = script["draw"](3, 60)
    assert layers == script["draw"](3, 60)
    assert layers != script["draw"](4, 60)
    assert len({layer.name for layer in layers}) == 60


def test_a_layer_is_a_convolution_that_fits_its_image(script: dict[str, Any]) -> None:
    """And is worth measuring: 0.3 to 100 thousand million operations."""
    for layer in script["draw"](5, 200):
        x, w = (
            torch.empty(shape, device="meta") for shape in (layer.input_shape, layer.weight_shape)
        )
        y = torch.conv2d(x, w, None, layer.stride, layer.padding, layer.dilation)
        assert tuple(y.shape) == layer.output_shape
        spec = layer.spec(Direction.FORWARD, Precision.TF32, Layout.NCHW)
        assert 3e8 < spec.operations < 1e11


def test_the_command_line_says_what_is_measured(script: dict[str, Any], tmp_path: Path) -> None:
    asked: list[tuple[Selection, tuple[Peer, ...], Path | None]] = []

    def measure(selection: Selection, peers: tuple[Peer, ...], json: Path | None) -> int:
        asked.append((selection, peers, json))
        return 0

    script["main"].__globals__["bench_suite"] = measure
    output = tmp_path / "random.json"
    arguments = ["--seed", "2", "--layers", "3", "--precision", "float16", "--json", str(output)]
    assert script["main"](arguments) == 0
    ((selection, peers, json),) = asked
    layers = [layer for layer, _, _ in selection.groups()]
    assert list(dict.fromkeys(layers)) == script["draw"](2, 3)
    assert all(isinstance(layer, Layer) for layer in layers)
    assert selection.precisions == (Precision.FLOAT16,)
    assert (peers, json) == ((Peer.TORCH,), output)


def test_without_a_gpu_it_says_so(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script["main"](["--layers", "1"]) == 2
    assert "GPU" in capsys.readouterr().err
