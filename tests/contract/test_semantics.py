"""What a call means: arguments, shapes, dtypes, layouts, special values."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from comparison import (
    assert_close,
    is_channels_last,
    references,
    result_or_words,
    results_and_gradients,
)
from running import Backend, backends
from torch import Tensor, nn

import convsmith

ALL = backends("operators", "simulator", "cuda")


def compare(backend: Backend, tensors: list[Tensor | None], **arguments: object) -> None:
    ours = results_and_gradients(convsmith.conv2d, tensors, **arguments)
    if backend.name == "operators":  # PyTorch's arithmetic: to the bit, whatever it is worth.
        assert_close(ours, results_and_gradients(F.conv2d, tensors, **arguments))
    else:
        assert_close(ours, references(tensors, **arguments))


def operands(
    device: str,
    shape: tuple[int, ...] = (2, 4, 7, 6),
    weight_shape: tuple[int, ...] = (6, 4, 3, 2),
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    shapes = shape, weight_shape, weight_shape[:1]
    return [torch.randn(shape).to(device, dtype) for shape in shapes]


# --- Arguments.


@ALL
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"stride": (2, 1)},
        {"stride": [1, 3]},
        {"stride": (2,)},
        {"stride": torch.Size([2, 1])},
        {"padding": 1},
        {"padding": (0, 3)},
        {"padding": [2]},
        {"dilation": 2},
        {"dilation": (1, 3)},
        {"padding": "valid"},
        {"padding": "valid", "stride": 2},
        {"padding": "same"},
        {"padding": "same", "dilation": (3, 2)},
        {"stride": (2, 3), "padding": (3, 1), "dilation": (2, 1)},
    ],
    ids=str,
)
def test_forms_of_arguments(backend, options):
    tensors = operands(backend.device)
    compare(backend, tensors, **options)
    compare(backend, [*tensors[:2], None], **options)
    compare(backend, [tensors[0][0], *tensors[1:]], **options)
    assert backend.handed_over == 0


@ALL
def test_keywords_are_those_of_pytorch(backend):
    x, w, b = operands(backend.device, (2, 4, 7, 6), (6, 2, 3, 2))
    ours = convsmith.conv2d(groups=2, dilation=1, padding=1, stride=2, bias=b, weight=w, input=x)
    assert_close([ours], [F.conv2d(x, w, b, 2, 1, 1, 2)])


@ALL
def test_integers_that_are_not_int_are_pytorchs(backend):
    """A zero-dimensional tensor counts as an int there; ours asks no more than it has to."""
    x, w, b = operands(backend.device)

    # Not every version of PyTorch takes one.
    theirs, ours = (
        result_or_words(function, x, w, b, torch.tensor(2))
        for function in (F.conv2d, convsmith.conv2d)
    )
    assert ours == theirs if isinstance(theirs, str) else torch.equal(ours, theirs)


@ALL
@pytest.mark.parametrize("size", [(7, 6), (6, 7), (5, 5)])
@pytest.mark.parametrize("kernel", [(2, 2), (4, 3), (1, 6), (3, 3)])
@pytest.mark.parametrize("dilation", [1, (2, 1), 3])
def test_padding_same(backend, size, kernel, dilation):
    """Also asymmetric: an even kernel with an odd dilation pads one more below and on the right."""
    tensors = operands(backend.device, (2, 2, *size), (3, 2, *kernel))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        compare(backend, tensors, padding="same", dilation=dilation)
    assert convsmith.conv2d(*tensors, padding="same", dilation=dilation).shape[2:] == size


@ALL
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("multiplier", [1, 3])
def test_groups(backend, groups, multiplier):
    weight_shape = (4 * multiplier, 4 // groups, 3, 2)
    compare(backend, operands(backend.device, weight_shape=weight_shape), groups=groups, padding=1)


# --- Shapes without anything in them.


@ALL
@pytest.mark.parametrize(
    ("shape", "weight_shape", "options"),
    [
        ((0, 4, 7, 6), (6, 4, 3, 2), {}),
        ((0, 4, 7, 6), (6, 2, 3, 2), {"groups": 2, "padding": 1, "stride": 2}),
        ((0, 4, 7, 6), (6, 4, 3, 2), {"padding": "same"}),
        ((2, 0, 7, 6), (6, 0, 3, 2), {}),
        ((2, 0, 7, 6), (0, 0, 3, 2), {}),
        ((0, 7, 6), (6, 0, 3, 2), {}),
    ],
)
def test_empty(backend, shape, weight_shape, options):
    """Empty batches are ordinary; no channels give no channels, whatever the weight says."""
    tensors = operands(backend.device, shape, weight_shape)

    theirs, ours = (
        result_or_words(results_and_gradients, function, tensors, **options)
        for function in (F.conv2d, convsmith.conv2d)
    )
    if isinstance(theirs, str):
        assert ours == theirs
    else:
        assert_close(ours, theirs)


@backends("operators", "simulator")
def test_empty_batch_through_the_operators(backend):
    """As vmap and a compiled graph of any batch size may bring it."""
    x, w, b = operands(backend.device, (0, 4, 7, 6))
    y = torch.ops.convsmith.conv2d(x, w, b, (1, 1), (0, 0), (1, 1), 1)
    assert y.shape == (0, 6, 5, 5)
    g = torch.ops.convsmith.conv2d_input_gradient(y, w, x, (1, 1), (0, 0), (1, 1), 1)
    assert g.shape == x.shape
    gradients = torch.ops.convsmith.conv2d_weight_gradient(y, x, w, (1, 1), (0, 0), (1, 1), 1, True)
    assert_close(gradients, [torch.zeros_like(w), torch.zeros_like(b)])


# --- Memory.


def strided(tensor: Tensor, kind: str) -> Tensor:
    """The same values in another kind of memory."""
    if kind == "contiguous":
        return tensor.contiguous()
    if kind == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if kind == "every second":
        wide = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    if kind == "transposed":
        return tensor.transpose(2, 3).contiguous().transpose(2, 3)
    if kind == "inside":
        padded = F.pad(tensor, (3, 2, 1, 4), value=torch.nan)
        return padded[:, :, 1:-4, 3:-2]
    if kind == "expanded":
        return tensor[:, :1].expand_as(tensor)


KINDS = ("contiguous", "channels_last", "every second", "transposed", "inside", "expanded")


@ALL
@pytest.mark.parametrize("weight_kind", KINDS)
@pytest.mark.parametrize("input_kind", KINDS)
def test_any_strides(backend, input_kind, weight_kind):
    """Every layout is read in place; what lies around the elements (NaN) is not."""
    x, w, b = operands(backend.device)
    x, w, b = strided(x, input_kind), strided(w, weight_kind), torch.stack([b, b], 1)[:, 0]
    before = [tensor.clone() for tensor in (x, w, b)]
    strides = [tensor.stride() for tensor in (x, w, b)]
    compare(backend, [x, w, b], padding=1, stride=(1, 2))
    assert_close([x, w, b], before)
    assert [tensor.stride() for tensor in (x, w, b)] == strides


@ALL
@pytest.mark.parametrize("kind", KINDS[:4])
def test_any_strides_of_the_upstream_gradient(backend, kind):
    tensors = [tensor.requires_grad_() for tensor in operands(backend.device)]
    upstream = strided(torch.randn(2, 6, 5, 5, device=backend.device), kind)
    ours = torch.autograd.grad(convsmith.conv2d(*tensors), tensors, upstream)
    assert_close(ours, torch.autograd.grad(F.conv2d(*tensors), tensors, upstream))


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel", [(3, 2), (1, 1)])
@pytest.mark.parametrize("kinds", list(itertools.product(KINDS[:2], KINDS[:2])))
def test_memory_format_of_results(backend, kinds, kernel, dtype):
    """Channels last where the input or the weight is, and gradients follow; never in float64.

    A 1x1 weight is both, and counts as contiguous.
    """
    x, w, _ = operands(backend.device, weight_shape=(6, 4, *kernel), dtype=dtype)
    x, w = strided(x, kinds[0]).requires_grad_(), strided(w, kinds[1]).requires_grad_()
    y = convsmith.conv2d(x, w)
    gradients = torch.autograd.grad(y, (x, w), torch.randn_like(y))
    ambiguous = kernel == (1, 1)
    expected = dtype is not torch.float64 and (
        kinds[0] == "channels_last" or (kinds[1] == "channels_last" and not ambiguous)
    )
    assert [is_channels_last(tensor) for tensor in (y, *gradients)] == [expected] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kinds", list(itertools.product(KINDS[:2], KINDS[:2])))
def test_memory_format_is_that_of_pytorch(dtype, kinds):
    x, w, _ = operands("cuda", dtype=dtype)
    x, w = strided(x, kinds[0]).requires_grad_(), strided(w, kinds[1]).requires_grad_()
    layouts = []
    for function in (convsmith.conv2d, F.conv2d):
        y = function(x, w)
        gradients = torch.autograd.grad(y, (x, w), torch.randn_like(y))
        layouts.append([is_channels_last(tensor) for tensor in (y, *gradients)])
    assert layouts[0] == layouts[1]


# --- Values.


@backends("simulator", "cuda")
@pytest.mark.parametrize("place", ["input", "weight", "bias"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_inf_and_nan_come_out_where_ieee_puts_them(backend, place, value, dtype):
    """In the output and, for the input's, in the weight's gradient.

    In the input's gradient PyTorch disagrees with itself: whether an infinite weight meets a zero
    beyond the upstream gradient's border depends on dtype and device.
    """
    tensors = operands(backend.device, dtype=dtype)
    tensors[("input", "weight", "bias").index(place)].view(-1)[5] = value
    ours = results_and_gradients(convsmith.conv2d, tensors, padding=1)
    theirs = references(tensors, padding=1)
    assert not theirs[0].isfinite().all()
    assert_close([ours[0], ours[2], ours[3]], [theirs[0], theirs[2], theirs[3]])
    both = ours[1].isfinite() & theirs[1].isfinite()
    assert both.sum() >= 0.7 * both.numel()
    assert_close([ours[1][both]], [theirs[1][both]])
    assert not ours[1][~theirs[1].isfinite()].isfinite().any()


@ALL
def test_zeros_of_the_padding_meet_no_infinite_weight(backend):
    """What PyTorch has for 0 * inf at the border is what comes out."""
    x, w, b = operands(backend.device)
    w[1, 2, 0, 0] = torch.inf
    compare(backend, [x, w, b], padding=2)


@backends("operators", "simulator")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64, torch.uint8])
def test_dtypes_of_pytorch_alone(backend, dtype):
    x, w = (torch.randint(0, 5, shape).to(dtype) for shape in ((2, 4, 7, 6), (6, 4, 3, 2)))

    theirs, ours = result_or_words(F.conv2d, x, w), result_or_words(convsmith.conv2d, x, w)
    assert ours == theirs if isinstance(theirs, str) else torch.equal(ours, theirs)


@backends("operators", "simulator")
def test_a_view_to_be_negated_is_read_as_it_looks(backend):
    z = torch.randn(2, 4, 7, 6, dtype=torch.complex64)
    x = z.conj().imag
    assert x.is_neg()
    _, w, b = operands(backend.device)
    assert_close([convsmith.conv2d(x, w, b)], [F.conv2d(x, w, b)])
    assert backend.handed_over == 0


@backends("operators", "simulator")
@pytest.mark.parametrize("kind", ["sparse", "mkldnn", "nested", "meta"])
def test_memory_that_is_pytorchs_alone(backend, kind):
    x, w, b = operands(backend.device)
    if kind == "sparse":
        x = x.to_sparse()
    elif kind == "mkldnn":
        x, w, b = x.to_mkldnn(), w.to_mkldnn(), b.to_mkldnn()
    elif kind == "nested":
        x = torch.nested.nested_tensor([x[0], x[1]])
    else:
        x, w, b = x.to("meta"), w.to("meta"), b.to("meta")

    def outcome(function):
        try:
            y = function(x, w, b)
            return y.to_dense() if kind == "mkldnn" else y
        except (RuntimeError, NotImplementedError) as error:
            return str(error).splitlines()[0]

    theirs, ours = outcome(F.conv2d), outcome(convsmith.conv2d)
    if isinstance(theirs, str):
        assert ours == theirs
    else:
        assert ours.shape == theirs.shape
        assert ours.device == theirs.device
        assert kind == "meta" or torch.equal(ours, theirs)


# --- Modes of padding.


@ALL
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, (1, 2), "same", "valid"])
def test_padding_modes(backend, mode, padding):
    arguments = {"padding": padding, "padding_mode": mode, "bias": True}
    torch.manual_seed(0)
    ours = convsmith.Conv2d(4, 6, 3, **arguments).to(backend.device)
    torch.manual_seed(0)
    theirs = nn.Conv2d(4, 6, 3, **arguments).to(backend.device)
    x = torch.randn(2, 4, 7, 6, device=backend.device)
    assert_close([ours(x)], [theirs(x)])
    assert backend.handed_over == 0
