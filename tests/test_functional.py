"""The way a call takes: straight to a launch, through the operators, or to PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import convsmith
from convsmith import execute, functional, ops
from convsmith.ops import operators
from convsmith.ops.layers import is_plain, nobody_looks_on

ARGUMENTS = ((1, 1), (1, 1), (1, 1), 1)


def operands() -> list[Tensor]:
    return [torch.randn(shape) for shape in ((2, 4, 7, 6), (6, 4, 3, 2), (6,))]


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What conv2d did, in the simulator: "launch", "operator" or "pytorch" for each call."""
    taken: list[str] = []

    def note(module, name, word):
        run = getattr(module, name)

        def noted(*arguments):
            taken.append(word)
            return run(*arguments)

        monkeypatch.setattr(module, name, noted)

    note(functional, "run_forward", "launch")
    note(execute, "run_forward", "launch")
    note(ops, "conv2d", "operator")
    note(functional, "_torch_conv2d", "pytorch")
    functional._routes.clear()
    with convsmith.simulator(), convsmith.use_kernel("direct"):
        yield taken
    functional._routes.clear()


def test_straight_to_the_launch(ways):
    tensors = operands()
    for _ in range(2):  # The second time by memory.
        y = convsmith.conv2d(*tensors, *ARGUMENTS)
    convsmith.conv2d(*tensors[:2], padding=1)
    convsmith.conv2d(tensors[0][0], *tensors[1:])
    with torch.no_grad():
        convsmith.conv2d(*(tensor.requires_grad_() for tensor in tensors), *ARGUMENTS)
    with torch.inference_mode():
        convsmith.conv2d(*(tensor.clone() for tensor in tensors), *ARGUMENTS)
    assert ways == ["launch"] * 6
    torch.testing.assert_close(y, F.conv2d(*tensors, *ARGUMENTS))


def test_training_takes_the_same_way(ways, monkeypatch):
    """Recorded by autograd past the dispatcher; and the gradients of an ordinary backward, too."""
    gradients = []
    for name in ("input_gradient", "weight_gradient"):
        operator = getattr(operators, name.upper())
        monkeypatch.setattr(operators, name.upper(), operator._replace(overload=None))
        run = getattr(execute, name)
        monkeypatch.setattr(
            execute, name, lambda *a, run=run, name=name: gradients.append(name) or run(*a)
        )
    leaves = [tensor.requires_grad_() for tensor in operands()]
    for _ in range(2):
        y = convsmith.conv2d(*leaves, *ARGUMENTS)
        g = torch.randn_like(y)
        ours = torch.autograd.grad(y, leaves, g)
    assert ways == ["launch"] * 2
    assert gradients == ["input_gradient", "weight_gradient"] * 2
    torch.testing.assert_close(ours, torch.autograd.grad(F.conv2d(*leaves, *ARGUMENTS), leaves, g))


def dual(tensors: list[Tensor]) -> AbstractContextManager[object]:
    return forward_ad.dual_level()


@pytest.mark.parametrize(
    "layer",
    [
        dual,
        lambda tensors: torch.autocast("cpu", torch.bfloat16),
        lambda tensors: FlopCounterMode(display=False),
        lambda tensors: torch.profiler.profile(),
    ],
    ids=["forward AD", "autocast", "dispatch mode", "profiler"],
)
def test_through_the_operator_where_a_layer_has_a_part(ways, layer):
    """Also when a call like it went straight to the launch before; and straight again after."""
    tensors = operands()
    convsmith.conv2d(*tensors, *ARGUMENTS)
    with layer(tensors):
        convsmith.conv2d(*tensors, *ARGUMENTS)
    with torch.no_grad():
        convsmith.conv2d(*tensors, *ARGUMENTS)
    assert ways[0] == "launch"
    assert ways.count("operator") == 1
    assert ways[-1] == "launch"


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.vmap(f)(x[:, None]),
        lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f, x: torch.func.jvp(f, (x,), (x,)),
        lambda f, x: torch.func.functionalize(f)(x),
    ],
    ids=["vmap", "grad", "jvp", "functionalize"],
)
def test_through_the_operator_under_a_transform(ways, transform):
    x, w, b = operands()
    transform(lambda x: convsmith.conv2d(x, w, b, *ARGUMENTS), x)
    assert "operator" in ways
    assert "pytorch" not in ways


def test_fake_tensors_pass_through_the_operator(ways):
    with FakeTensorMode() as mode:
        convsmith.conv2d(*map(mode.from_tensor, operands()), *ARGUMENTS)
    assert ways == ["operator"]


def test_asymmetric_padding_is_copied_and_convolved_by_ours(ways):
    x, w, b = operands()
    y = convsmith.conv2d(x, w, b, padding="same")
    assert ways == ["operator", "launch"]
    torch.testing.assert_close(y, F.conv2d(x, w, b, padding="same"))


def test_the_rest_is_pytorchs(ways):
    x, w, b = operands()
    convsmith.conv2d(x.to(torch.complex64), w.to(torch.complex64))
    with pytest.raises(RuntimeError, match="non-positive stride"):
        convsmith.conv2d(x, w, b, stride=0)
    with pytest.raises(TypeError):
        convsmith.conv2d(x, w, b, stride=1.0)
    assert ways == ["pytorch"] * 3


def test_plain_cpu_tensors_are_pytorchs(monkeypatch):
    """To the bit, and without a look at the planner."""
    monkeypatch.delattr(execute, "prefers_torch")
    monkeypatch.delattr(execute, "forward")
    x, w, b = (tensor.requires_grad_() for tensor in operands())
    y = convsmith.conv2d(x, w, b, *ARGUMENTS)
    assert torch.equal(y, F.conv2d(x, w, b, *ARGUMENTS))
    assert y.grad_fn.name() == "ConvolutionBackward0"


def test_memory_tells_calls_apart(ways):
    """One tensor, argument or switch changed at a time, back and forth."""
    x, w, b = operands()
    calls = [
        ((x, w, b), {}),
        ((x, w), {}),
        ((x[:1], w, b), {}),
        ((x, w[:3], b[:3]), {}),
        ((x.contiguous(memory_format=torch.channels_last), w, b), {}),
        ((x.double(), w.double(), b.double()), {}),
        ((x, w, b), {"stride": 2}),
        ((x, w, b), {"padding": 1}),
        ((x, w, b), {"padding": (1, 0)}),
        ((x, w, b), {"padding": "valid"}),
        ((x, w, b), {"dilation": 2}),
        ((x[:, :2], w[:, :1], b), {"groups": 2}),
        ((x[0], w, b), {}),
    ]
    for _ in range(2):
        for tensors, options in calls:
            y = convsmith.conv2d(*tensors, **options)
            torch.testing.assert_close(y, F.conv2d(*tensors, **options))
    assert ways == ["launch"] * 26
    assert len(functional._routes) == len(calls)


def test_memory_is_bounded(ways, monkeypatch):
    monkeypatch.setattr(functional, "_ROUTES_KEPT", 3)
    x, w, b = operands()
    for padding in range(8):
        convsmith.conv2d(x, w, b, padding=padding)
        assert len(functional._routes) <= 3


@pytest.mark.parametrize("bad", [True, 1.0, (True, 1), (1.0, 1), (1.0, 1.0), [1.0, 1.0]])
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_what_equals_a_remembered_argument_is_not_taken_for_it(ways, name, bad):
    tensors = operands()
    for good in (1, (1, 1), [1, 1]):
        convsmith.conv2d(*tensors, **{name: good})
    with pytest.raises(TypeError, match="invalid combination"):
        convsmith.conv2d(*tensors, **{name: bad})


def test_plain_is_memory_and_no_more():
    x = torch.randn(2, 3, 4, 4)
    assert is_plain(x)
    assert is_plain(torch.nn.Parameter(x))
    assert is_plain(x[:, ::2].transpose(2, 3))
    with torch.inference_mode():
        assert is_plain(torch.ones(1))
    z = torch.randn(2, dtype=torch.complex64)
    for other in (
        x.to_sparse(),
        x.to_mkldnn(),
        x.to("meta"),
        z.conj(),
        z.conj().imag,
        torch._efficientzerotensor(2),
        FakeTensorMode().from_tensor(x),
        torch.nested.nested_tensor([x[0], x[1]]),
        torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    ):
        assert not is_plain(other)
    seen = []
    torch.func.vmap(lambda row: seen.append(is_plain(row)) or row)(x)
    torch.func.grad(lambda x: seen.append(is_plain(x)) or x.sum())(x)
    assert seen == [False, False]


@pytest.mark.gpu
def test_plain_on_a_gpu():
    """Without this the fast way would never be taken there, and nothing else would say so."""
    x = torch.randn(2, 3, 4, 4, device="cuda")
    assert is_plain(x)
    assert is_plain(torch.nn.Parameter(x))
    with torch.inference_mode():
        assert is_plain(torch.ones(1, device="cuda"))
    assert nobody_looks_on()
    with torch.inference_mode():
        assert nobody_looks_on()


@pytest.mark.gpu
def test_straight_to_the_launch_on_a_gpu(monkeypatch):
    monkeypatch.delattr(ops, "conv2d")
    tensors = [tensor.cuda() for tensor in operands()]
    with convsmith.use_kernel("direct"):
        y = convsmith.conv2d(*tensors, *ARGUMENTS)
    torch.testing.assert_close(y.cpu(), F.conv2d(*map(Tensor.cpu, tensors), *ARGUMENTS))


@pytest.mark.gpu
def test_gradients_take_the_short_way_in_autograds_threads(monkeypatch):
    for name in ("INPUT_GRADIENT", "WEIGHT_GRADIENT"):
        monkeypatch.setattr(operators, name, getattr(operators, name)._replace(overload=None))
    leaves = [tensor.cuda().double().requires_grad_() for tensor in operands()]
    with convsmith.use_kernel("direct"):
        y = convsmith.conv2d(*leaves, *ARGUMENTS)
        g = torch.randn_like(y)
        ours = torch.autograd.grad(y, leaves, g)
    torch.testing.assert_close(ours, torch.autograd.grad(F.conv2d(*leaves, *ARGUMENTS), leaves, g))
