"""Choices that are measured, on a GPU: wherever the first call of a kind happens to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from comparison import results_and_gradients, upstream_of
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import convsmith
from convsmith import choice, execute, functional
from convsmith.bench.switches import precision_class
from convsmith.kernels import implicit_gemm
from convsmith.launch import Launch
from convsmith.spec import Direction, Precision

pytestmark = pytest.mark.gpu

LARGEST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 2e-2}  # over the largest result


def forget() -> None:
    choice._measured.clear()
    execute._launches.clear()
    functional._routes.clear()


@pytest.fixture(autouse=True)
def measuring(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With cudnn.benchmark on, in the TF32 class, all that can run a convolution is measured."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0, for several kernels to choose among")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(choice, "NEAR", math.inf)
    forget()
    with precision_class(Precision.TF32):
        yield
    forget()


def operands() -> list[Tensor]:
    """Of a layer of small planes, which is predicted to be PyTorch's."""
    shapes = (32, 512, 7, 7), (512, 512, 3, 3), (512,)
    return [torch.randn(shape, device="cuda") for shape in shapes]


def measured_directions() -> set[Direction]:
    """Of which convolutions the choice was measured."""
    return {
        spec.direction
        for (spec, *_), plan in choice._measured.items()
        if plan.candidates[0].measured_ms is not None
    }


def assert_right(ours: Tensor, exact: Tensor) -> None:
    error = (ours.double() - exact).abs().max() / exact.abs().max()
    assert error < LARGEST_ERROR[ours.dtype]


def test_all_directions_are_measured_and_right() -> None:
    tensors = operands()
    exact = results_and_gradients(F.conv2d, [tensor.double() for tensor in tensors], padding=1)
    for _ in range(2):  # the second time by memory
        ours = results_and_gradients(convsmith.conv2d, tensors, padding=1)
        for one, other in zip(ours, exact, strict=True):
            assert_right(one, other)
        assert measured_directions() == set(Direction)
        assert len(choice._measured) == 3


def test_a_plan_tells_measured_times_and_runs() -> None:
    x, w, b = operands()
    plan = convsmith.plan(x, w, b, padding=1)
    times = [one.measured_ms for one in plan.candidates]
    assert {one.kernel for one in plan.candidates} == {"implicit_gemm", "direct", "torch"}
    assert all(time is not None and 0 < time < 100 for time in times)
    assert times == sorted(times)
    assert plan.explanation == (
        f"measured to be the fastest of {len(times)}, torch.backends.cudnn.benchmark being on"
    )
    assert f"measured {times[0]:.3f} ms" in str(plan)
    convsmith.conv2d(x, w, b, padding=1)
    (launch,) = execute._launches.values()
    assert plan.kernel == ("torch" if launch is None else launch.plan.kernel)
    assert launch is None or launch.plan is plan


def test_the_random_state_is_the_users() -> None:
    tensors = operands()
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    convsmith.conv2d(*tensors, padding=1)
    assert measured_directions() == {Direction.FORWARD}
    after = torch.get_rng_state(), torch.cuda.get_rng_state()
    assert all(torch.equal(*states) for states in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "mode",
    [
        torch.inference_mode,
        lambda: torch.autocast("cuda", torch.bfloat16),
        lambda: torch.device("cuda"),
        lambda: torch.cuda.stream(torch.cuda.Stream()),
    ],
    ids=["inference mode", "autocast", "default device", "side stream"],
)
def test_under_a_mode(mode: Callable[[], AbstractContextManager[object]]) -> None:
    tensors = operands()
    exact = F.conv2d(*(tensor.double() for tensor in tensors), padding=1)
    torch.cuda.synchronize()
    with mode():
        y = convsmith.conv2d(*tensors, padding=1)
    torch.cuda.synchronize()
    assert measured_directions() == {Direction.FORWARD}
    assert {spec.dtype for spec, *_ in choice._measured} == {y.dtype}
    assert_right(y, exact)


def test_a_flop_counter_counts_the_call_alone() -> None:
    with FlopCounterMode(display=False) as counter:
        convsmith.conv2d(*operands(), padding=1)
    ((spec, *_),) = choice._measured
    assert counter.get_total_flops() == spec.operations


def test_in_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """In autograd's own thread."""
    leaves = [tensor.requires_grad_() for tensor in operands()]
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "benchmark", False)
        # The operator: PyTorch's own function would have a backward pass of its own.
        y = torch.ops.convsmith.conv2d(*leaves, (1, 1), (1, 1), (1, 1), 1)
    assert measured_directions() == set()
    ours = torch.autograd.grad(y, leaves, upstream_of(y))
    assert measured_directions() == {Direction.GRAD_INPUT, Direction.GRAD_WEIGHT}
    exact = results_and_gradients(F.conv2d, [leaf.double() for leaf in leaves], padding=1)
    for one, other in zip(ours, exact[1:], strict=True):
        assert_right(one, other)


def test_while_a_graph_is_captured_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it captures is as predicted; the next call outside is measured."""
    monkeypatch.setattr(implicit_gemm, "LONGEST_ALTERNATIVE", math.inf)
    x, w, b = operands()
    with convsmith.use_kernel("implicit_gemm"):
        with monkeypatch.context() as patch:
            patch.setattr(torch.backends.cudnn, "benchmark", False)
            convsmith.conv2d(x, w, b, padding=1)  # compiled and loaded before
        remembered: dict[object, Launch | None] = dict(execute._launches)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = convsmith.conv2d(x, w, b, padding=1)
        assert choice._measured == {}
        assert execute._launches == remembered
        x.normal_()
        graph.replay()
        exact = F.conv2d(x.double(), w.double(), b.double(), padding=1)
        assert_right(y, exact)
        assert_right(convsmith.conv2d(x, w, b, padding=1), exact)
    assert measured_directions() == {Direction.FORWARD}
    assert len(execute._launches) == 2


def test_out_of_memory_leaves_the_choice_to_the_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object, **__: object) -> Tensor:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(choice.trial.timing, "CudaClock", run_out)
    tensors = operands()
    y = convsmith.conv2d(*tensors, padding=1)
    assert_right(y, F.conv2d(*(tensor.double() for tensor in tensors), padding=1))
    assert measured_directions() == set()
    assert len(choice._measured) == 1
