"""What watches, counts, claims or constrains a convolution sees ours as it sees PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, results_and_gradients
from running import backends
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import convsmith

ALL = backends("operators", "simulator", "cuda")


def operands(device: str, groups: int = 1) -> list[Tensor]:
    shapes = (2, 4, 7, 6), (6, 4 // groups, 3, 2), (6,)
    return [torch.randn(shape, device=device) for shape in shapes]


# --- __torch_function__.


@ALL
def test_a_subclass_claims_the_call(backend):
    seen = []

    class Claiming(Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), keywords=None):
            seen.append(function)
            return super().__torch_function__(function, types, arguments, keywords or {})

    x, w, b = operands(backend.device)
    for place in range(3):
        tensors = [x, w, b]
        tensors[place] = tensors[place].as_subclass(Claiming)
        seen.clear()
        y = convsmith.conv2d(*tensors, padding=1)
        assert torch.conv2d in seen
        assert type(y) is Claiming
        assert_close([y.as_subclass(Tensor)], [F.conv2d(x, w, b, padding=1)])


@ALL
def test_a_mode_claims_the_call(backend):
    seen = []

    class Claiming(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            seen.append(function)
            return function(*arguments, **(keywords or {}))

    tensors = operands(backend.device)
    expected = convsmith.conv2d(*tensors)  # Remembered: the mode is to be asked all the same.
    with Claiming():
        y = convsmith.conv2d(*tensors)
    assert torch.conv2d in seen
    assert_close([y], [expected])


@ALL
def test_a_mode_may_answer_for_it(backend):
    class Answering(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            return "answer"

    tensors = operands(backend.device)
    with Answering():
        assert convsmith.conv2d(*tensors) == "answer"


@ALL
def test_a_default_device_is_no_claim(backend):
    """torch.set_default_device is such a mode, and would cost every call its kernel."""
    tensors = operands(backend.device)
    expected = F.conv2d(*tensors)
    with torch.device(backend.device):
        y = convsmith.conv2d(*tensors)
        z = convsmith.conv2d(*[tensor.requires_grad_() for tensor in tensors])
    assert_close([y, z], [expected, expected])
    assert backend.handed_over == 0


def test_a_class_that_is_no_tensor_claims_the_call():
    class Duck:
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), keywords=None):
            return function

    assert convsmith.conv2d(Duck(), torch.ones(1, 1, 1, 1)) is torch.conv2d


# --- Modes of dispatch.


@ALL
@pytest.mark.parametrize("groups", [1, 2])
def test_flop_counter(backend, groups):
    counts = []
    for function in (convsmith.conv2d, F.conv2d):
        tensors = [tensor.requires_grad_() for tensor in operands(backend.device, groups)]
        with FlopCounterMode(display=False) as counter:
            y = function(*tensors, padding=1, groups=groups)
            forward = counter.get_total_flops()
            y.backward(torch.randn_like(y))
        with FlopCounterMode(display=False) as weight_alone:
            y = function(tensors[0].detach(), *tensors[1:], padding=1, groups=groups)
            y.backward(torch.randn_like(y))
        with FlopCounterMode(display=False) as input_alone:
            y = function(tensors[0], tensors[1].detach(), padding=1, groups=groups)
            y.backward(torch.randn_like(y))
        counts.append(
            (forward, *(mode.get_total_flops() for mode in (counter, weight_alone, input_alone)))
        )
    assert counts[0] == counts[1]
    assert counts[0][0] > 0
    assert backend.handed_over == 0


@ALL
def test_a_dispatch_mode_sees_the_operators(backend):
    seen = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

    tensors = operands(backend.device)
    convsmith.conv2d(*tensors)
    with Watching():
        y = convsmith.conv2d(*tensors)
    assert "convsmith.conv2d.default" in seen
    assert_close([y], [F.conv2d(*tensors)])


@ALL
def test_the_profiler_sees_the_operators(backend):
    tensors = [tensor.requires_grad_() for tensor in operands(backend.device)]
    with torch.no_grad():
        convsmith.conv2d(*tensors)
    with torch.profiler.profile() as profiler:
        with torch.no_grad():
            convsmith.conv2d(*tensors)
        y = convsmith.conv2d(*tensors)
        y.backward(torch.randn_like(y))
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts["convsmith::conv2d"] == 2
    assert counts["convsmith::conv2d_input_gradient"] == 1
    assert counts["convsmith::conv2d_weight_gradient"] == 1


@ALL
def test_a_subclass_with_its_own_dispatch_is_pytorchs(backend):
    """DTensor and its like know aten's operators, not ours."""
    seen = []

    class Wrapping(Tensor):
        @staticmethod
        def __new__(cls, inner):
            return Tensor._make_wrapper_subclass(
                cls, inner.shape, dtype=inner.dtype, device=inner.device
            )

        def __init__(self, inner):
            self.inner = inner

        __torch_function__ = torch._C._disabled_torch_function_impl

        @classmethod
        def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            inner = [a.inner if isinstance(a, cls) else a for a in arguments]
            return function(*inner, **(keywords or {}))

    x, w, b = operands(backend.device)
    y = convsmith.conv2d(Wrapping(x), w, b)
    assert seen == ["aten.convolution.default"]
    assert_close([y], [F.conv2d(x, w, b)])


# --- Determinism, and PyTorch's switches.


@ALL
@pytest.mark.parametrize("way", ["plain", "deterministic algorithms", "cudnn.deterministic"])
def test_bit_identical_from_run_to_run(backend, way, monkeypatch):
    tensors = [torch.randn(4, 8, 13, 11), torch.randn(16, 8, 3, 3), torch.randn(16)]
    tensors = [tensor.to(backend.device) for tensor in tensors]
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", way == "cudnn.deterministic")
    torch.use_deterministic_algorithms(way == "deterministic algorithms")
    try:
        first, *others = (
            results_and_gradients(convsmith.conv2d, tensors, padding=1) for _ in range(3)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    assert backend.handed_over == 0


@backends("simulator", "cuda")
def test_cudnn_switched_off_changes_no_bit(backend, monkeypatch):
    tensors = operands(backend.device)
    on = results_and_gradients(convsmith.conv2d, tensors, padding=1)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    off = results_and_gradients(convsmith.conv2d, tensors, padding=1)
    assert all(torch.equal(one, two) for one, two in zip(on, off, strict=True))


@ALL
def test_replacing_pytorchs_function_by_ours(backend, monkeypatch):
    """What ours hands over must not come back to it."""
    original = F.conv2d
    monkeypatch.setattr(F, "conv2d", convsmith.conv2d)
    monkeypatch.setattr(torch, "conv2d", convsmith.conv2d)
    x, w, b = operands(backend.device)
    assert_close([F.conv2d(x, w, b)], [original(x, w, b)])
    with pytest.raises(RuntimeError, match="non-positive stride"):
        F.conv2d(x, w, b, stride=0)
    z = torch.nn.Conv2d(4, 6, 3).to(backend.device)
    assert_close([z(x)], [original(x, z.weight, z.bias)])
