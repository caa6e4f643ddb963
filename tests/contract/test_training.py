"""A network that is trained on ConvSmith's kernels learns as it does on PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import EARLY, FACTOR, ResNet, Task, deviations, losses

import convsmith
from convsmith import choice, execute, functional, planner
from convsmith.bench.switches import cudnn_autotuning, precision_class
from convsmith.launch import compile_ahead
from convsmith.planner import Plan
from convsmith.spec import ConvSpec, Direction, Precision


def forget_launches() -> None:
    planner.plan_for.cache_clear()
    choice._measured.clear()
    execute._launches.clear()
    functional._routes.clear()


def kernels_run() -> dict[Direction, set[str]]:
    """What ran since ``forget_launches``: own families' names, and torch for PyTorch's own."""
    ran: dict[Direction, set[str]] = {direction: set() for direction in Direction}
    for (direction, *_), launch in execute._launches.items():
        ran[direction].add("torch" if launch is None else launch.plan.kernel)
    return ran


def has_fallen(curve: Tensor) -> bool:
    return curve[-EARLY:].mean().item() < 0.75 * curve[0].item()


# --- On a GPU: 200 steps, in both classes of float32.

ON_GPU = Task("cuda", width=64, size=32, batch=256, steps=200, noise=2.5)


@pytest.fixture
def prefer_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Called, it lets the most specialised family that is able to run a convolution run it."""

    def prefer() -> None:
        monkeypatch.setattr(planner, "REQUIRED_GAIN", 0.0)
        forget_launches()

    forget_launches()
    yield prefer
    forget_launches()


def plans_of_a_step(task: Task) -> list[Plan]:
    """What each convolution of the network runs, in every direction that training needs."""
    plans = []

    def note(layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        (x,) = inputs
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        for direction in Direction:
            if direction is Direction.GRAD_INPUT and not x.requires_grad:
                continue
            has_bias = direction is not Direction.GRAD_INPUT
            upstream = None if direction is Direction.FORWARD else output
            spec = ConvSpec.of(direction, x, layer.weight, has_bias, *geometry, upstream)
            plans.append(planner.plan_for(spec, x.device))

    model = ResNet(nn.Conv2d, task.width).to(task.device)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    model(torch.zeros(task.batch, 3, task.size, task.size, device=task.device))
    return plans


def curves_of_cudnn(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """PyTorch's loss curves, by what makes cuDNN take other algorithms.

    In the TF32 class another run takes those of float32, which the class allows as well: all of
    TF32's round the operands alike, so that these runs alone would not show what rounding does.
    """
    channels_last = torch.channels_last
    curves = {"heuristic": losses(ON_GPU)}
    curves["channels_last"] = losses(ON_GPU, memory_format=channels_last)
    with cudnn_autotuning():
        curves["autotuned"] = losses(ON_GPU)
        curves["autotuned channels_last"] = losses(ON_GPU, memory_format=channels_last)
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "deterministic", True)
        curves["deterministic"] = losses(ON_GPU)
    if precision is Precision.TF32:
        with precision_class(Precision.FLOAT32):
            curves["float32"] = losses(ON_GPU)
    return curves


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.TF32])
def test_loss_curves_are_as_alike_as_those_of_cudnns_algorithms(precision, prefer_own, monkeypatch):
    """On the kernels that the planner chooses, and on own kernels alone."""
    ours, ran = {}, {}
    with precision_class(precision):
        references = curves_of_cudnn(precision, monkeypatch)
        for way, prepare in (("planned", forget_launches), ("own", prefer_own)):
            prepare()
            compile_ahead(plans_of_a_step(ON_GPU), torch.device("cuda", 0))
            ours[way] = losses(ON_GPU, convsmith.Conv2d)
            ran[way] = kernels_run()
    assert all("torch" not in names for names in ran["own"].values()), ran
    if torch.cuda.get_device_capability() == (9, 0):
        assert all("implicit_gemm" in names for names in ran["own"].values()), ran
        assert any("implicit_gemm" in names for names in ran["planned"].values()), ran
    assert all(has_fallen(curve) for curve in (*references.values(), *ours.values()))
    found = {way: deviations(curve, list(references.values())) for way, curve in ours.items()}
    print(precision.value, found, ran)  # with pytest -rP: how far from the limit, and on what
    assert all(value <= FACTOR for of in found.values() for value in of.values()), found


# --- On a CPU: the judgement can tell a wrong gradient from other rounding.

ON_CPU = Task("cpu", width=8, size=16, batch=16, steps=80, noise=1)
judging = pytest.mark.xdist_group("training")  # shares the references


class UnfoldedConv2d(nn.Conv2d):
    """The convolution as a product of matrices: one algorithm more."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        columns = F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)
        rows = -(-input.shape[2] // self.stride[0])  # of a filter that keeps a plane's size
        return (weight.flatten(1) @ columns + bias[:, None]).unflatten(2, (rows, -1))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors as small as these gain nothing by more, which wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def references(one_thread: None) -> list[Tensor]:
    """PyTorch's loss curves on a CPU, each by another algorithm."""
    curves = [losses(ON_CPU), losses(ON_CPU, UnfoldedConv2d)]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        with torch.backends.mkldnn.flags(enabled=memory_format is torch.channels_last):
            curves.append(losses(ON_CPU, memory_format=memory_format))
    return curves


@judging
def test_a_right_run_is_told_to_be_one(references):
    exact = losses(replace(ON_CPU, dtype=torch.float64))
    assert has_fallen(exact)
    assert max(deviations(exact, references).values()) <= FACTOR


def hook(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[ResNet], object]:
    """Changes the gradient of a parameter of the strided block."""
    return lambda model: model[2].get_parameter(name).register_hook(change)


def enlarge_input_gradient(model: ResNet) -> None:
    convolution = model[2].conv2
    convolution.register_full_backward_hook(lambda _, inputs, outputs: (1.01 * inputs[0],))


def without_first_tap(gradient: Tensor) -> Tensor:
    gradient = gradient.clone()
    gradient[:, :, 0, 0] = 0
    return gradient


WRONG = {
    "a weight gradient is 1% too large": hook("conv1.weight", lambda gradient: 1.01 * gradient),
    "a weight gradient lacks a tap": hook("conv1.weight", without_first_tap),
    "a shortcut's weight gradient is 1% too large": hook(
        "shortcut.weight", lambda gradient: 1.01 * gradient
    ),
    "a bias has no gradient": hook("conv2.bias", torch.zeros_like),
    "an input gradient is 1% too large": enlarge_input_gradient,
}


@judging
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_gradient_is_seen_early(references, wrong):
    found = deviations(losses(ON_CPU, prepare=WRONG[wrong]), references)
    assert found["early"] > 10 * FACTOR, found


@judging
def test_a_run_that_learns_worse_is_seen_late(references):
    worse = references[0].clone()
    worse[EARLY:] += 0.2
    found = deviations(worse, references)
    assert found["early"] <= FACTOR < found["late"], found


# --- In the simulator: a few steps on own kernels, in all three directions.


def test_steps_of_simulated_kernels_are_those_of_float64(one_thread):
    task = Task("cpu", width=8, size=8, batch=4, steps=4, noise=1)
    exact = losses(replace(task, dtype=torch.float64))
    forget_launches()
    with convsmith.simulator(), convsmith.use_kernel("direct"):
        ours = losses(task, convsmith.Conv2d)
        assert kernels_run() == {direction: {"direct"} for direction in Direction}
    forget_launches()
    torch.testing.assert_close(ours, exact, rtol=1e-6, atol=0)
