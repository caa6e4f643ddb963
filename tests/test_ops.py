"""The three operators themselves: what they promise to whoever finds them in a graph."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

import convsmith
from convsmith.spec import strides_like_channels_last

OPS = torch.ops.convsmith
GEOMETRY = ((2, 1), (1, 0), (1, 2), 2)
NAMES = ("conv2d", "conv2d_input_gradient", "conv2d_weight_gradient")


def operands(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    shapes = {"x": (2, 4, 5, 6), "w": (6, 2, 3, 2), "b": (6,), "g": (2, 6, 3, 4)}
    return {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


def conv2d(x, w, b=None):
    return OPS.conv2d(x, w, b, *GEOMETRY)


def input_gradient(g, w, x):
    return OPS.conv2d_input_gradient(g, w, x, *GEOMETRY)


def weight_gradient(g, x, w, has_bias=True):
    return OPS.conv2d_weight_gradient(g, x, w, *GEOMETRY, has_bias)


def references(x, w, b, g):
    """What PyTorch has for all three."""
    gradients = torch.ops.aten.convolution_backward(
        g, x, w, [len(b)], *GEOMETRY[:3], False, (0, 0), GEOMETRY[3], (True, True, True)
    )
    return (torch.conv2d(x, w, b, *GEOMETRY), *gradients)


def test_schemas():
    """They are in other people's saved programs: a change here breaks those."""
    geometry = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups"
    assert [str(getattr(OPS, name).default._schema) for name in NAMES] == [
        f"convsmith::conv2d(Tensor input, Tensor weight, Tensor? bias, {geometry}) -> Tensor",
        "convsmith::conv2d_input_gradient(Tensor grad_output, Tensor weight, Tensor input, "
        f"{geometry}) -> Tensor",
        "convsmith::conv2d_weight_gradient(Tensor grad_output, Tensor input, Tensor weight, "
        f"{geometry}, bool has_bias) -> (Tensor, Tensor)",
    ]


def test_values():
    t = operands()
    ours = (
        conv2d(t["x"], t["w"], t["b"]),
        input_gradient(t["g"], t["w"], t["x"]),
        *weight_gradient(t["g"], t["x"], t["w"]),
    )
    torch.testing.assert_close(ours, references(**t))
    assert weight_gradient(t["g"], t["x"], t["w"], False)[1].shape == (0,)


@pytest.mark.parametrize(
    ("function", "wanted", "given"),
    [
        (conv2d, ("x", "w", "b"), ()),
        (conv2d, ("x", "w"), ()),
        (input_gradient, ("g", "w"), ("x",)),
        (weight_gradient, ("g", "x"), ("w",)),
        (lambda g, x, w: weight_gradient(g, x, w, False)[0], ("g", "x"), ("w",)),
    ],
    ids=["conv2d", "conv2d without bias", *NAMES[1:], "conv2d_weight_gradient without bias"],
)
def test_gradcheck_and_gradgradcheck(function, wanted, given):
    """Every derivative of every operator, in both modes, and batched, up to the second."""
    t = operands()
    fixed = [t[name] for name in given]
    variables = tuple(t[name].requires_grad_() for name in wanted)

    def of(*variables):
        return function(*variables, *fixed)

    assert gradcheck(
        of,
        variables,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
        fast_mode=True,
    )
    assert gradgradcheck(
        of,
        variables,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
        fast_mode=True,
    )


@pytest.mark.parametrize("has_upstream", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("wanted", [("g",), ("x",), ("g", "x")])
def test_the_weight_gradients_two_upstreams(has_upstream, wanted):
    """Either may be absent: the gradient of the bias alone is spread, not convolved."""
    t = operands()
    leaves = [t[name].requires_grad_() for name in wanted]
    outputs = weight_gradient(t["g"], t["x"], t["w"])
    references = torch.ops.aten.convolution_backward(
        t["g"], t["x"], t["w"], [6], *GEOMETRY[:3], False, (0, 0), GEOMETRY[3], (False, True, True)
    )[1:]
    kept = [number for number in (0, 1) if has_upstream[number]]
    upstreams = [torch.randn_like(outputs[number]) for number in kept]
    ours, theirs = (
        torch.autograd.grad(
            [results[number] for number in kept if results[number].requires_grad],
            leaves,
            [u for u, number in zip(upstreams, kept, strict=True) if results[number].requires_grad],
            allow_unused=True,
            materialize_grads=True,
        )
        for results in (outputs, references)
        if any(results[number].requires_grad for number in kept)
    )
    torch.testing.assert_close(ours, theirs)


def test_what_gives_only_the_shape_is_not_differentiated():
    t = operands()
    shape = t["x"].requires_grad_()
    assert not input_gradient(t["g"], t["w"], shape).requires_grad
    shape = t["w"].requires_grad_()
    assert not weight_gradient(t["g"], t["x"].detach(), shape)[0].requires_grad


@pytest.mark.parametrize("in_dims", [*itertools.product((None, 0), repeat=3)][1:])
def test_vmap_of_the_gradients(in_dims):
    """Mapped over the upstream gradient, the input, the weight: every combination, no loop."""
    t = operands()
    many = [torch.randn((3, *t[name].shape), dtype=torch.float64) for name in ("g", "x", "w")]
    tensors = [
        t[name] if dim is None else stacked
        for name, stacked, dim in zip(("g", "x", "w"), many, in_dims, strict=True)
    ]

    def ours(g, x, w):
        return (input_gradient(g, w, x), *weight_gradient(g, x, w))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = torch.func.vmap(ours, in_dims)(*tensors)
    rows = [
        references(
            b=t["b"],
            **{
                name: tensor if dim is None else tensor[row]
                for name, tensor, dim in zip(("g", "x", "w"), tensors, in_dims, strict=True)
            },
        )[1:]
        for row in range(3)
    ]
    torch.testing.assert_close(results, tuple(map(torch.stack, zip(*rows, strict=True))))


@pytest.mark.parametrize("formats", list(itertools.product((False, True), repeat=3)))
@pytest.mark.parametrize("shape", [((2, 4, 5, 6), (6, 2, 3, 2)), ((2, 4, 5, 6), (4, 2, 1, 1))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layouts_are_what_traced_graphs_were_told(formats, shape, dtype):
    """Real strides equal those of the shape without data, whatever PyTorch's arithmetic gives."""
    layouts = [
        torch.channels_last if channels_last else torch.contiguous_format
        for channels_last in formats
    ]
    x, w = (
        torch.randn(size, dtype=dtype).to(memory_format=layout)
        for size, layout in zip(shape, layouts[:2], strict=True)
    )
    arguments = ((1, 1), (1, 1), (1, 1), 2)
    y = OPS.conv2d(x, w, None, *arguments)
    g = torch.randn_like(y).to(memory_format=layouts[2])
    meta = [tensor.to("meta") for tensor in (x, w, g)]
    for real, told in (
        (y, OPS.conv2d(*meta[:2], None, *arguments)),
        (
            OPS.conv2d_input_gradient(g, w, x, *arguments),
            OPS.conv2d_input_gradient(meta[2], meta[1], meta[0], *arguments),
        ),
        (
            OPS.conv2d_weight_gradient(g, x, w, *arguments, False)[0],
            OPS.conv2d_weight_gradient(meta[2], meta[0], meta[1], *arguments, False)[0],
        ),
    ):
        assert real.shape == told.shape
        axes = [axis for axis in range(4) if real.shape[axis] > 1]  # Others may be anything.
        assert [real.stride(axis) for axis in axes] == [told.stride(axis) for axis in axes]
    expected = dtype is not torch.float64 and any(
        strides_like_channels_last(tuple(tensor.shape), tensor.stride()) for tensor in (x, w)
    )
    assert strides_like_channels_last(tuple(y.shape), y.stride()) == expected


def test_flops_of_each():
    t = operands(torch.float32)
    counts = []
    for call in (
        lambda: conv2d(t["x"], t["w"], t["b"]),
        lambda: input_gradient(t["g"], t["w"], t["x"]),
        lambda: weight_gradient(t["g"], t["x"], t["w"]),
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    expected = []
    for mask in (None, (True, False, False), (False, True, True)):
        with FlopCounterMode(display=False) as counter:
            if mask is None:
                torch.conv2d(t["x"], t["w"], t["b"], *GEOMETRY)
            else:
                torch.ops.aten.convolution_backward(
                    t["g"], t["x"], t["w"], [6], *GEOMETRY[:3], False, (0, 0), 2, mask
                )
        expected.append(counter.get_total_flops())
    assert counts == expected


def test_opcheck():
    t = operands(torch.float32)
    x, w, b, g = (t[name].requires_grad_() for name in ("x", "w", "b", "g"))
    torch.library.opcheck(OPS.conv2d.default, (x, w, b, *GEOMETRY))
    torch.library.opcheck(OPS.conv2d.default, (x, w, None, *GEOMETRY))
    torch.library.opcheck(OPS.conv2d_input_gradient.default, (g, w, x.detach(), *GEOMETRY))
    for has_bias in (False, True):
        arguments = (g, x, w.detach(), *GEOMETRY, has_bias)
        torch.library.opcheck(OPS.conv2d_weight_gradient.default, arguments)


def test_registered_once_and_without_noise():
    """Importing again, in whatever order, neither fails nor warns."""
    program = (
        "import warnings; warnings.simplefilter('error');"
        "warnings.filterwarnings('ignore', category=DeprecationWarning);"
        "import torch, importlib;"
        "import convsmith.ops, convsmith.functional, convsmith;"
        "importlib.import_module('convsmith.ops');"
        "assert torch.ops.convsmith.conv2d.default is not None"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert convsmith.conv2d is not None
