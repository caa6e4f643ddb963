"""conv_transpose2d: what a call means, what is wrong with one, what is computed and by whom."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from comparison import (
    assert_close,
    is_channels_last,
    references,
    result_or_words,
    results_and_gradients,
    upstream_of,
)
from running import Backend, backends
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import convsmith
from convsmith import execute, functional

ALL = backends("operators", "simulator", "cuda")


def operands(
    device: str = "cpu",
    shape: tuple[int, ...] = (2, 4, 5, 6),
    weight_shape: tuple[int, ...] = (4, 3, 3, 2),
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    shapes = shape, weight_shape, (weight_shape[1] * groups,)
    return [torch.randn(size).to(device, dtype) for size in shapes]


def compare(backend: Backend, tensors: list[Tensor | None], **arguments: object) -> None:
    """Output and gradients, against float64; and none of it handed to PyTorch's function."""
    ours = results_and_gradients(convsmith.conv_transpose2d, tensors, **arguments)
    assert_close(ours, references(tensors, F.conv_transpose2d, **arguments))
    assert backend.handed_over == 0


# --- Arguments, shapes.


@ALL
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"stride": (2, 1)},
        {"stride": [1, 3]},
        {"stride": (2,)},
        {"padding": 1},
        {"padding": (2, 0)},
        {"padding": [1]},
        {"dilation": 2},
        {"dilation": (1, 3)},
        {"stride": 2, "output_padding": 1},
        {"stride": (2, 3), "output_padding": (0, 2)},
        {"stride": [3, 2], "output_padding": [2, 1]},
        {"stride": (3, 2), "padding": (3, 1), "output_padding": (2, 1), "dilation": (2, 3)},
        {"stride": (4, 5), "output_padding": (3, 4)},  # Rows that nothing but the bias reaches.
        {"dilation": 3, "output_padding": 2},  # More than the stride: the input has rows too few.
        {"stride": 2, "dilation": (4, 3), "padding": 1, "output_padding": (3, 1)},
    ],
    ids=str,
)
def test_forms_of_arguments(backend, options):
    tensors = operands(backend.device)
    compare(backend, tensors, **options)
    compare(backend, [*tensors[:2], None], **options)
    compare(backend, [tensors[0][0], *tensors[1:]], **options)


@ALL
def test_keywords_and_their_order_are_those_of_pytorch(backend):
    x, w, b = operands(backend.device, groups=2)
    expected = F.conv_transpose2d(x, w, b, (3, 2), (1, 0), (2, 1), 2, (1, 2))
    ours = convsmith.conv_transpose2d(x, w, b, (3, 2), (1, 0), (2, 1), 2, (1, 2))
    assert_close([ours], [expected])
    ours = convsmith.conv_transpose2d(
        dilation=(1, 2), groups=2, output_padding=(2, 1), padding=(1, 0), stride=(3, 2),
        bias=b, weight=w, input=x,
    )  # fmt: skip
    assert_close([ours], [expected])


@ALL
@pytest.mark.parametrize("kernel", [(1, 1), (1, 4), (3, 3)])
@pytest.mark.parametrize(("groups", "multiplier"), [(1, 1), (2, 3), (4, 1), (4, 2)])
def test_groups_and_kernels(backend, groups, multiplier, kernel):
    tensors = operands(backend.device, (2, 4, 3, 7), (4, multiplier, *kernel), groups)
    compare(backend, tensors, groups=groups, stride=(2, 1))


@ALL
@pytest.mark.parametrize(
    ("shape", "weight_shape"),
    [((0, 4, 5, 6), (4, 3, 3, 2)), ((2, 0, 5, 6), (0, 3, 3, 2)), ((0, 5, 6), (0, 3, 3, 2))],
)
def test_empty(backend, shape, weight_shape):
    tensors = operands(backend.device, shape, weight_shape)

    theirs, ours = (
        result_or_words(results_and_gradients, function, tensors, stride=2)
        for function in (F.conv_transpose2d, convsmith.conv_transpose2d)
    )
    if isinstance(theirs, str):
        assert ours == theirs
    else:
        assert_close(ours, theirs)


@backends("operators", "simulator")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64])
def test_dtypes_of_pytorch_alone(backend, dtype):
    x, w = (torch.randint(0, 5, shape).to(dtype) for shape in ((2, 4, 5, 6), (4, 3, 3, 2)))

    theirs = result_or_words(F.conv_transpose2d, x, w, stride=2)
    ours = result_or_words(convsmith.conv_transpose2d, x, w, stride=2)
    assert ours == theirs if isinstance(theirs, str) else torch.equal(ours, theirs)


# --- Memory, values.


def strided(tensor: Tensor, kind: str) -> Tensor:
    """The same values in another kind of memory."""
    if kind == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if kind == "inside":
        return F.pad(tensor, (3, 2, 1, 4), value=torch.nan)[:, :, 1:-4, 3:-2]
    if kind == "expanded":
        return tensor[:, :1].expand_as(tensor)
    return tensor


KINDS = ("contiguous", "channels_last", "inside", "expanded")


@ALL
@pytest.mark.parametrize("kinds", list(itertools.product(KINDS, KINDS)), ids="-".join)
def test_any_strides(backend, kinds):
    """Read in place, and neither changed nor read around (NaN)."""
    x, w, b = operands(backend.device)
    x, w, b = strided(x, kinds[0]), strided(w, kinds[1]), torch.stack([b, b], 1)[:, 0]
    before = [tensor.clone() for tensor in (x, w, b)]
    compare(backend, [x, w, b], padding=1, stride=(1, 2), output_padding=(0, 1))
    assert_close([x, w, b], before)


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kernel", [(3, 2), (1, 1)])
@pytest.mark.parametrize("kinds", list(itertools.product(KINDS[:2], KINDS[:2])), ids="-".join)
def test_memory_format_of_results(backend, kinds, kernel, dtype):
    """Channels last where the input or the weight is, and gradients follow; never in float64."""
    x, w, _ = operands(backend.device, weight_shape=(4, 3, *kernel), dtype=dtype)
    x, w = strided(x, kinds[0]).requires_grad_(), strided(w, kinds[1]).requires_grad_()
    y = convsmith.conv_transpose2d(x, w, stride=2)
    gradients = torch.autograd.grad(y, (x, w), torch.randn_like(y))
    expected = dtype is not torch.float64 and (
        kinds[0] == "channels_last" or (kinds[1] == "channels_last" and kernel != (1, 1))
    )
    assert [is_channels_last(tensor) for tensor in (y, *gradients)] == [expected] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kinds", list(itertools.product(KINDS[:2], KINDS[:2])), ids="-".join)
def test_memory_format_is_that_of_pytorch(dtype, kinds):
    x, w, _ = operands("cuda", dtype=dtype)
    x, w = strided(x, kinds[0]).requires_grad_(), strided(w, kinds[1]).requires_grad_()
    layouts = []
    with convsmith.use_kernel("direct"):
        for function in (convsmith.conv_transpose2d, F.conv_transpose2d):
            y = function(x, w)
            gradients = torch.autograd.grad(y, (x, w), torch.randn_like(y))
            layouts.append([is_channels_last(tensor) for tensor in (y, *gradients)])
    assert layouts[0] == layouts[1]


@backends("simulator", "cuda")
@pytest.mark.parametrize("place", ["input", "bias"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_inf_and_nan_come_out_where_ieee_puts_them(backend, place, value, dtype):
    tensors = operands(backend.device, dtype=dtype)
    tensors[("input", "weight", "bias").index(place)].view(-1)[1] = value
    options = {"stride": 2, "padding": 1, "output_padding": 1}
    expected = F.conv_transpose2d(*map(Tensor.double, tensors), **options).to(dtype)
    assert not expected.isfinite().all()
    ours = convsmith.conv_transpose2d(*tensors, **options)
    # In 16 bits the result is rounded before the bias is added, as PyTorch has it on a GPU.
    atol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours, expected, rtol=atol, atol=atol, equal_nan=True)


@backends("simulator", "cuda")
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_no_infinite_weight_is_lost(backend, value):
    """More than the sum's elements may be NaN where such a weight meets a zero of the border.

    cuDNN has more of those itself, so PyTorch computes it on the CPU.
    """
    tensors = operands(backend.device)
    tensors[1].view(-1)[5] = value
    ours = convsmith.conv_transpose2d(*tensors, stride=2).cpu()
    theirs = F.conv_transpose2d(*(one.cpu() for one in tensors), stride=2)
    assert not ours[~theirs.isfinite()].isfinite().any()
    both = ours.isfinite() & theirs.isfinite()
    assert both.sum() >= 0.6 * both.numel()
    assert_close([ours[both]], [theirs[both]])


# --- Errors: the same type as F.conv_transpose2d raises, and the same words.


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


X, W, B = ones(2, 4, 8, 8), ones(4, 6, 3, 3), ones(6)
INVALID = "must be (tuple of ints|int|Tensor), not"
ERRORS = {
    "channels": ((ones(2, 5, 8, 8), W), {}, "to have 4 channels, but got 5 channels instead"),
    "channels, unbatched": ((ones(5, 8, 8), W), {}, r"expected input\[1, 5, 8, 8\]"),
    "in_channels that groups do not divide": ((X, W), {"groups": 3}, "to be divisible by 3"),
    "groups 0": ((X, W), {"groups": 0}, "non-positive groups is not supported"),
    "stride 0": ((X, W), {"stride": 0}, "non-positive stride is not supported"),
    "stride negative": ((X, W), {"stride": (1, -1)}, "non-positive stride is not supported"),
    "padding negative": ((X, W), {"padding": -1}, "negative padding is not supported"),
    "output_padding negative": ((X, W), {"output_padding": -1}, "negative output_padding"),
    "output_padding of the stride": (
        (X, W), {"stride": 2, "output_padding": 2},
        "output padding must be smaller than either stride or dilation",
    ),
    "output_padding of the stride, in one direction": (
        (X, W), {"stride": (3, 2), "output_padding": (2, 2)}, "output padding must be smaller",
    ),
    "dilation 0": ((X, W), {"dilation": 0}, ""),
    "result of no rows": ((X, W), {"padding": (5, 0)}, ""),
    "result of fewer rows": ((X, W), {"padding": 6}, ""),
    "three strides": ((X, W), {"stride": (1, 1, 1)}, r"but got stride=\[1, 1, 1\]"),
    "three output_paddings": ((X, W), {"output_padding": [0, 0, 0]}, "output_padding"),
    "input of rank 2": ((ones(8, 8), W), {}, r"Expected 3D \(unbatched\) or 4D \(batched\)"),
    "input of rank 5": ((ones(1, 2, 4, 8, 8), W), {}, r"Expected 3D \(unbatched\) or 4D"),
    "weight of rank 3": ((X, ones(4, 3, 3)), {}, ""),
    "bias of another length": ((X, W, ones(5)), {}, r"with 6 elements.*size \[5\]"),
    "bias of rank 2": ((X, W, ones(1, 6)), {}, "expected bias to be 1-dimensional with 6"),
    "bias of in_channels": ((X, W, ones(4)), {}, "expected bias to be 1-dimensional with 6"),
    "bias of another dtype": ((X, W, B.double()), {}, "bias type"),
    "weight of another dtype": ((X, W.double()), {}, "weight type .* should be the same"),
    "no rows": ((ones(2, 4, 0, 8), W), {}, ""),
    "padding string": ((X, W), {"padding": "same"}, INVALID),
    "float stride": ((X, W), {"stride": 1.0}, INVALID),
    "bool stride": ((X, W), {"stride": True}, INVALID),
    "bool output_padding": ((X, W), {"output_padding": False}, INVALID),
    "tuple of float output_paddings": ((X, W, B, 1, 0, (0.0, 0.0)), {}, "type float at pos 0"),
    "list of float output_paddings": ((X, W, B, 1, 0, [0.0, 0.0]), {}, "type float at pos 0"),
    "output_padding None": ((X, W), {"output_padding": None}, INVALID),
    "float groups": ((X, W), {"groups": 1.0}, INVALID),
    "weight None": ((X, None), {}, INVALID),
    "bias a number": ((X, W, 1.0), {}, INVALID),
}  # fmt: skip


def outcome(function, arguments, options) -> object:
    try:
        return function(*arguments, **options)
    except (RuntimeError, TypeError, ValueError) as error:
        # PyTorch's TypeErrors name the position of an argument that was given by position.
        return type(error), re.sub(r" \(position \d+\)", "", str(error))


@backends("operators", "simulator")
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("case", ERRORS)
def test_error(backend, case, requires_grad):
    (given, *others), options, words = ERRORS[case]
    given = given.clone().requires_grad_(requires_grad)
    # What is right first: no memory of the understood may let the wrong pass.
    for zero in (0, (0, 0), [0, 0]):
        convsmith.conv_transpose2d(X, W, B, 1, 0, zero, 1, 1)
        convsmith.conv_transpose2d(X, W, B, output_padding=zero)
    theirs = outcome(F.conv_transpose2d, (given, *others), options)
    ours = outcome(convsmith.conv_transpose2d, (given, *others), options)
    if isinstance(theirs, Tensor):  # Not everything is refused everywhere.
        assert words == ""
        assert_close([ours], [theirs])
    else:
        assert ours == theirs
        assert re.search(words, ours[1])


@pytest.mark.parametrize("options", [{"out": X}, {"foo": 1}, {"output_size": (8, 8)}])
def test_signature(options):
    for function in (F.conv_transpose2d, convsmith.conv_transpose2d):
        with pytest.raises(TypeError, match=r"conv_transpose2d\(\)"):
            function(X, W, **options)


# --- What is computed, and the way it takes.


@ALL
@pytest.mark.parametrize("wanted", [*itertools.product((False, True), repeat=3)][1:], ids=str)
def test_only_what_is_asked_for_is_computed(backend, wanted, monkeypatch):
    """The gradients are the forward convolution and the weight gradient; a bias needs none."""
    calls: list[str] = []
    for name in ("forward", "input_gradient", "weight_gradient"):
        run = getattr(execute, name)
        monkeypatch.setattr(
            execute, name, lambda *a, run=run, name=name: calls.append(name) or run(*a)
        )
    results = []
    tensors = operands(backend.device, groups=2)
    for function in (convsmith.conv_transpose2d, F.conv_transpose2d):
        leaves = [
            tensor.clone().requires_grad_(flag)
            for tensor, flag in zip(tensors, wanted, strict=True)
        ]
        y = function(*leaves, (3, 2), (1, 0), (2, 1), 2, (1, 2))
        calls.clear()
        y.backward(upstream_of(y))
        results.append(([leaf.grad for leaf in leaves], calls[:]))
    (ours, made), (theirs, _) = results
    assert [grad is not None for grad in ours] == list(wanted)
    assert_close(*([g for g in grads if g is not None] for grads in (ours, theirs)))
    assert made == ["forward"] * wanted[0] + ["weight_gradient"] * wanted[1]


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What conv_transpose2d did: "launch", "operator" or "pytorch" for each call."""
    taken: list[str] = []
    for module, name, word in (
        (functional, "run_input_gradient", "launch"),
        (execute, "run_input_gradient", "launch"),
        (functional.ops, "conv_transpose2d", "operator"),
        (functional, "_torch_conv_transpose2d", "pytorch"),
    ):
        run = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, run=run, word=word: taken.append(word) or run(*a)
        )
    return taken


@backends("simulator", "cuda")
def test_straight_to_the_launch(backend, ways):
    """With and without a gradient, batched or not, and by memory the second time."""
    tensors = operands(backend.device)
    for zero in (0, (0, 0), [0, 0]):
        for _ in range(2):
            convsmith.conv_transpose2d(*tensors, output_padding=zero)
    convsmith.conv_transpose2d(tensors[0][0], *tensors[1:])
    convsmith.conv_transpose2d(*(tensor.requires_grad_() for tensor in tensors))
    assert ways == ["launch"] * 8
    assert len(functional._routes) == 4


@backends("simulator", "cuda")
def test_memory_tells_calls_apart(backend, ways):
    x, w, b = operands(backend.device, weight_shape=(4, 4, 3, 2))
    calls = [
        ((x, w, b), {}),
        ((x, w), {}),
        ((x, w, b), {"stride": 3}),
        ((x, w, b), {"stride": 3, "output_padding": 1}),
        ((x, w, b), {"stride": 3, "output_padding": (1, 2)}),
        ((x, w, b), {"stride": 3, "output_padding": [2, 2]}),
        ((x.double(), w.double(), b.double()), {}),
    ]
    for _ in range(2):
        for tensors, options in calls:
            y = convsmith.conv_transpose2d(*tensors, **options)
            assert_close([y], [F.conv_transpose2d(*tensors, **options)])
        # The same arguments describe another convolution there.
        assert_close([convsmith.conv2d(x, w, b)], [F.conv2d(x, w, b)])
    assert ways == ["launch"] * 2 * len(calls)


@backends("simulator", "cuda")
def test_the_rest_goes_through_the_operator_or_to_pytorch(backend, ways):
    x, w, b = operands(backend.device)
    with torch.autocast(backend.device, torch.bfloat16):
        convsmith.conv_transpose2d(x, w, b)
    torch.func.vmap(lambda x: convsmith.conv_transpose2d(x, w, b))(x[:, None])
    convsmith.conv_transpose2d(x, w, b, dilation=2, output_padding=1)
    assert [way for way in ways if way != "launch"] == ["operator"] * 3
    ways.clear()
    convsmith.conv_transpose2d(x.cfloat(), w.cfloat())
    assert ways == ["pytorch"]


def test_plain_cpu_tensors_are_pytorchs(ways):
    """To the bit."""
    x, w, b = (tensor.requires_grad_() for tensor in operands())
    y = convsmith.conv_transpose2d(x, w, b, 2)
    assert torch.equal(y, F.conv_transpose2d(x, w, b, 2))
    assert ways == ["pytorch"]


@backends("simulator", "cuda")
def test_a_family_is_insisted_on(backend):
    x, w, b = operands(backend.device, (2, 4, 9, 8), (4, 1, 3, 3), 4)
    y = convsmith.conv_transpose2d(x, w, b, 2, groups=4)
    for kernel in ("depthwise", "direct", "torch"):
        with convsmith.use_kernel(kernel):
            plan = convsmith.plan(y, w, stride=2, groups=4, direction="grad_input")
            assert plan.kernel == kernel
            assert_close([convsmith.conv_transpose2d(x, w, b, 2, groups=4)], [y])
    with (
        convsmith.use_kernel("depthwise"),
        pytest.raises(convsmith.errors.KernelUnavailableError, match="the depthwise family cannot"),
    ):
        convsmith.conv_transpose2d(*operands(backend.device, (2, 64, 9, 8), (64, 64, 3, 3)))


@ALL
@pytest.mark.parametrize("groups", [1, 2])
def test_flop_counter(backend, groups):
    counts = []
    for function in (convsmith.conv_transpose2d, F.conv_transpose2d):
        x, w, b = (tensor.requires_grad_() for tensor in operands(backend.device, groups=groups))
        counts.append([])
        for leaves in ((x, w, b), (x.detach(), w, b), (x, w.detach(), b)):
            with FlopCounterMode(display=False) as counter:
                y = function(*leaves, stride=2, groups=groups)
                counts[-1].append(counter.get_total_flops())
                y.backward(torch.randn_like(y))
            counts[-1].append(counter.get_total_flops())
    assert counts[0] == counts[1]
    assert backend.handed_over == 0


@ALL
def test_bit_identical_from_run_to_run(backend):
    tensors = operands(backend.device, (4, 8, 9, 7), (8, 6, 3, 3))
    first, *others = (
        results_and_gradients(convsmith.conv_transpose2d, tensors, stride=2) for _ in range(3)
    )
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nothing_is_copied(layout):
    """The result is all that is allocated: the bias is added to it in place."""
    x, w, b = operands("cuda", (4, 8, 256, 256), (8, 8, 3, 3))
    x = strided(x, layout)
    with convsmith.use_kernel("direct"):
        convsmith.conv_transpose2d(x, w, b, 2)  # Whatever the first call alone allocates.
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = convsmith.conv_transpose2d(x, w, b, 2)
        torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= y.nbytes + 2**21
