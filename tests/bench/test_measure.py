"""Measuring a layer, with everything real but the clock: tensors, references and judgement."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from convsmith import choice, execute
from convsmith.bench.accuracy import Distribution
from convsmith.bench.contestants import Operands, Peer, compiled, ours, pytorch
from convsmith.bench.measure import Conditions, measure
from convsmith.bench.record import Row
from convsmith.bench.reference import compute
from convsmith.bench.suites import Layer, Layout
from convsmith.planner import Plan
from convsmith.roofline import Ceilings
from convsmith.spec import ConvSpec, Direction, Precision, precision_of

CPU = torch.device("cpu")
LAYER = Layer("dense", (2, 8, 9, 8), 4, (3, 3), stride=(2, 1), padding=(1, 0))
CONDITIONS = Conditions("tiny", CPU, Ceilings(4.0, 50.0, 400.0, 750.0, 780.0))
BOTH = (Precision.TF32, Precision.FLOAT32)


def measured(direction: Direction, conditions: Conditions = CONDITIONS) -> list[Row]:
    return measure(LAYER, direction, BOTH, Layout.NCHW, conditions)


@pytest.mark.usefixtures("bench_on_cpu")
@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("direction", Direction)
def test_a_row_for_each_class_with_times_errors_and_memory(
    direction: Direction, layout: Layout
) -> None:
    classes = (*BOTH, Precision.BFLOAT16)
    rows = measure(LAYER, direction, classes, layout, CONDITIONS)
    assert [row["precision"] for row in rows] == [one.value for one in classes]
    for row in rows:
        assert "fault" not in row
        assert (row["layer"], row["direction"], row["layout"]) == (
            "dense",
            direction.value,
            layout.value,
        )
        assert row["ms"] == row["torch_ms"] == row["torch_channels_last_ms"] == 2
        assert (row["ratio"], row["kernel"]) == (1, "torch")
        assert row["extra_bytes"] == row["torch_extra_bytes"] == 4096
        assert set(row["errors"]) == {"rand", "wide", "randn"}
        assert 0 < row["rms_error"] < (1e-6 if row["precision"] != "bfloat16" else 1e-2)
        assert "torch_compile_ms" not in row


def broken(result: Any, damage: str) -> Any:
    """``result`` with one element wrong."""
    tensor = result[0] if isinstance(result, tuple) else result
    flat = tensor.view(-1)
    flat[flat.numel() // 2] = {
        "unwritten": math.nan,
        "infinite": math.inf,
        "slightly wrong": flat[flat.numel() // 2] + 1e-2 * tensor.abs().max(),
    }[damage]
    return result


FUNCTIONS = {
    Direction.FORWARD: "forward",
    Direction.GRAD_INPUT: "input_gradient",
    Direction.GRAD_WEIGHT: "weight_gradient",
}


@pytest.mark.usefixtures("bench_on_cpu")
@pytest.mark.parametrize("damage", ["unwritten", "infinite", "slightly wrong"])
@pytest.mark.parametrize("direction", Direction)
def test_a_wrong_result_has_no_time(
    direction: Direction, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(execute, FUNCTIONS[direction])
    monkeypatch.setattr(
        execute, FUNCTIONS[direction], lambda *arguments: broken(right(*arguments), damage)
    )
    for row in measured(direction):
        assert "at most" in row["fault"]
        assert "ms" not in row
        assert "ratio" not in row


@pytest.mark.usefixtures("bench_on_cpu")
def test_a_result_that_is_wrong_on_wide_operands_only_has_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = execute.forward

    def overflows(input: torch.Tensor, *rest: Any) -> torch.Tensor:
        output = right(input, *rest)
        return output * math.inf if input.abs().max() > 300 else output

    monkeypatch.setattr(execute, "forward", overflows)
    for row in measured(Direction.FORWARD):
        assert row["fault"].startswith("wide: ")


@pytest.mark.usefixtures("bench_on_cpu")
def test_choices_are_made_under_the_switches_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the first one, which may measure, and then the kernel is asked for by name."""
    right, kernels = choice.chosen_plan, []

    def watched(
        spec: ConvSpec, device: torch.device, kernel: str | None = None, **options: bool
    ) -> Plan:
        assert choice.is_measured()
        assert precision_of(torch.float32) is spec.precision
        kernels.append(kernel)
        return right(spec, device, kernel, **options)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(choice, "chosen_plan", watched)
    measured(Direction.FORWARD)
    assert kernels[:2] == [None, "torch"]


@pytest.mark.usefixtures("bench_on_cpu")
def test_only_the_peers_asked_for_are_timed() -> None:
    conditions = Conditions("tiny", CPU, CONDITIONS.ceilings, against=(Peer.TORCH,))
    for row in measured(Direction.FORWARD, conditions):
        assert "torch_ms" in row
        assert "torch_channels_last_ms" not in row


@pytest.mark.parametrize("direction", Direction)
def test_all_contestants_compute_the_same(direction: Direction) -> None:
    """Through torch.compile too; its code generation is PyTorch's business, so it is left out."""
    operands = Operands.draw(LAYER, Distribution.RANDN, torch.float32, CPU)
    spec = LAYER.spec(direction, Precision.FLOAT32, Layout.NCHW)
    exact = compute(spec, *operands.read_by(direction)).float()
    results = {
        "ours": ours(LAYER, direction, operands)(),
        "torch": pytorch(LAYER, direction, operands)(),
        "channels_last": pytorch(LAYER, direction, operands.to(Layout.NHWC))(),
        "compile": compiled(LAYER, direction, operands, backend="aot_eager")(),
    }
    for result in results.values():
        torch.testing.assert_close(result, exact, rtol=1e-4, atol=1e-4, check_stride=False)
    torch._dynamo.reset()
