"""Every row of errors: the same type as F.conv2d raises, and the same words."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from running import backends
from torch import nn

import convsmith


def x(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape or (2, 4, 8, 8), dtype=dtype)


def w(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape or (6, 4, 3, 3), dtype=dtype)


def b(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape or (6,), dtype=dtype)


LARGER = "Kernel size can't be greater than actual input size"
NOT_POSITIVE = "non-positive {} is not supported"
INVALID = "received an invalid combination of arguments"

# What is wrong, the arguments, and words that the message has to hold. Where PyTorch's words have
# changed between the versions that ConvSmith runs on, the message is compared all the same.
ERRORS = {
    "kernel larger than the input": ((x(2, 4, 2, 2), w()), {}, LARGER),
    "kernel larger in one direction": ((x(2, 4, 8, 2), w()), {}, LARGER),
    "dilated kernel larger than the input": ((x(), w()), {"dilation": 4}, r"\(9 x 9\)"),
    "kernel larger, empty batch": ((x(0, 4, 2, 2), w()), {}, LARGER),
    "kernel larger than an unbatched input": ((x(4, 2, 2), w()), {}, LARGER),
    "channels": ((x(2, 5, 8, 8), w()), {}, r"to have 4 channels, but got 5 channels instead"),
    "channels, unbatched": ((x(5, 8, 8), w()), {}, r"expected input\[1, 5, 8, 8\]"),
    "channels with groups": ((x(), w()), {"groups": 2}, "to have 8 channels, but got 4"),
    "out_channels that groups do not divide": (
        (x(), w(5, 2, 3, 3)), {"groups": 2}, "expected weight to be divisible by 2 at dimension 0",
    ),
    "fewer out_channels than groups": (
        (x(), w(2, 1, 3, 3)), {"groups": 4}, "expected weight to be at least 4 at dimension 0",
    ),
    "no out_channels": ((x(), w(0, 4, 3, 3)), {}, "expected weight to be at least 1 at dim"),
    "groups 0": ((x(), w()), {"groups": 0}, "non-positive groups is not supported"),
    "groups negative": ((x(), w()), {"groups": -1}, "non-positive groups is not supported"),
    "stride 0": ((x(), w()), {"stride": 0}, "non-positive stride is not supported"),
    "stride negative": ((x(), w()), {"stride": (1, -1)}, "non-positive stride is not supported"),
    "padding negative": ((x(), w()), {"padding": -1}, "negative padding is not supported"),
    "dilation 0": ((x(), w()), {"dilation": 0}, "dilation"),
    "dilation negative": ((x(), w()), {"dilation": (1, -1)}, "dilation"),
    "three strides": (
        (x(), w()), {"stride": (1, 1, 1)},
        r"expected stride to be a single integer value or a list of 2 values to match the "
        r"convolution dimensions, but got stride=\[1, 1, 1\]",
    ),
    "three paddings": ((x(), w()), {"padding": [1, 1, 1]}, r"but got padding=\[1, 1, 1\]"),
    "three dilations": ((x(), w()), {"dilation": [1, 1, 1]}, r"but got dilation=\[1, 1, 1\]"),
    "no strides": ((x(), w()), {"stride": ()}, "expected stride to be a single integer"),
    "input of rank 2": ((x(8, 8), w()), {}, r"Expected 3D \(unbatched\) or 4D \(batched\)"),
    "input of rank 5": ((x(1, 2, 4, 8, 8), w()), {}, r"Expected 3D \(unbatched\) or 4D"),
    "weight of rank 3": ((x(), w(4, 3, 3)), {}, ""),
    "weight of rank 5": ((x(), w(6, 4, 3, 3, 3)), {}, ""),
    "bias of another length": (
        (x(), w(), b(5)), {}, r"expected bias to be 1-dimensional with 6 elements.*size \[5\]",
    ),
    "bias of rank 2": ((x(), w(), b(1, 6)), {}, "expected bias to be 1-dimensional with 6"),
    "bias of another dtype": (
        (x(), w(), b(dtype=torch.float64)), {}, r"Input type \(float\) and bias type \(double\)",
    ),
    "weight of another dtype": (
        (x(), w(dtype=torch.float64)), {}, "Input type .* and weight type .* should be the same",
    ),
    "input of another dtype": (
        (x(dtype=torch.bfloat16), w()), {}, "Input type .* and weight type .* should be the same",
    ),
    "padding string": ((x(), w()), {"padding": "foo"}, "Invalid padding string: 'foo'"),
    "same with a stride": (
        (x(), w()), {"padding": "same", "stride": 2},
        "padding='same' is not supported for strided convolutions",
    ),
    "no rows": ((x(2, 4, 0, 8), w()), {}, LARGER),
    "no rows but padding": (
        (x(2, 4, 0, 8), w()), {"padding": 2},
        r"Only zero batch or zero channel inputs are supported, but got input shape: \[2, 4, 0, 8",
    ),
    "float stride": ((x(), w()), {"stride": 1.0}, INVALID),
    "tuple of float strides": ((x(), w()), {"stride": (1.0, 1.0)}, INVALID),
    "bool stride": ((x(), w()), {"stride": True}, INVALID),
    "tuple of bool strides": ((x(), w()), {"stride": (True, True)}, INVALID),
    "bool dilation": ((x(), w()), {"dilation": True}, INVALID),
    "bool padding": ((x(), w()), {"padding": False}, INVALID),
    "float groups": ((x(), w()), {"groups": 1.0}, INVALID),
    "bool groups": ((x(), w()), {"groups": True}, INVALID),
    "list of groups": ((x(), w()), {"groups": [1]}, ""),
    "stride None": ((x(), w()), {"stride": None}, INVALID),
    "padding None": ((x(), w()), {"padding": None}, INVALID),
    "list of padding strings": ((x(), w()), {"padding": ["same"]}, INVALID),
    "weight None": ((x(), None), {}, INVALID),
    "input a list": (([[1.0]], w()), {}, INVALID),
    "bias a number": ((x(), w(), 1.0), {}, INVALID),
}  # fmt: skip


@backends("operators", "simulator")
@pytest.mark.parametrize("case", ERRORS)
def test_error(backend, case):
    arguments, options, words = ERRORS[case]
    # What is right first: no cache of the understood may let the wrong pass.
    convsmith.conv2d(x(), w(), b(), 1, 1, 1, 1)
    convsmith.conv2d(x(), w(), b(), (1, 1), (1, 1), (1, 1), 1)
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        F.conv2d(*arguments, **options)
    with pytest.raises(theirs.type) as ours:
        convsmith.conv2d(*arguments, **options)
    assert re.search(words, str(ours.value))
    if theirs.type is RuntimeError:
        assert str(ours.value) == str(theirs.value)
    else:  # PyTorch's names the types of the arguments as they were given, some by keyword.
        assert str(ours.value).split(" - ")[0] == str(theirs.value).split(" - ")[0]


@backends("operators", "simulator")
@pytest.mark.parametrize("case", [case for case in ERRORS if not ERRORS[case][2].startswith("rec")])
def test_error_under_autograd(backend, case):
    """The same errors where a gradient is wanted: another path leads to them."""
    (given, *others), options, _ = ERRORS[case]
    if not isinstance(given, torch.Tensor):
        pytest.skip("the input is no tensor")
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        F.conv2d(given.clone().requires_grad_(), *others, **options)
    with pytest.raises(theirs.type) as ours:
        convsmith.conv2d(given.clone().requires_grad_(), *others, **options)
    if theirs.type is RuntimeError:
        assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((), {}), ((x(),), {}), ((x(), w()), {"out": x()}), ((x(), w()), {"foo": 1})],
)
def test_signature(arguments, options):
    with pytest.raises(TypeError, match=r"conv2d\(\)"):
        F.conv2d(*arguments, **options)
    with pytest.raises(TypeError, match=r"conv2d\(\)"):
        convsmith.conv2d(*arguments, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 0},
        {"groups": -1},
        {"groups": 3},
        {"out_channels": 5, "groups": 2},
        {"padding": "foo"},
        {"padding": "same", "stride": 2},
        {"padding_mode": "foo"},
        {"kernel_size": (3, 3, 3)},
    ],
)
@pytest.mark.parametrize("name", ["Conv2d", "LazyConv2d"])
def test_constructor(name, options):
    arguments = {"out_channels": 6, "kernel_size": 3, **options}
    if name == "Conv2d":
        arguments["in_channels"] = 4

    def outcome(layer: type[nn.Module]) -> tuple[type, str]:
        try:
            return type(layer(**arguments)), ""
        except Exception as error:
            return type(error), str(error)

    ours, theirs = outcome(getattr(convsmith, name)), outcome(getattr(nn, name))
    if issubclass(theirs[0], Exception):
        assert ours == theirs
    else:  # Neither looks at everything before the first input.
        assert issubclass(ours[0], theirs[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": 0}, "groups must be a positive integer"),
        ({"groups": 3}, "in_channels must be divisible by groups"),
        ({"out_channels": 5, "groups": 2}, "out_channels must be divisible by groups"),
        ({"padding": "foo"}, "Invalid padding string 'foo', should be one of"),
        ({"padding_mode": "foo"}, "padding_mode must be one of .*, but got padding_mode='foo'"),
    ],
)
def test_words_of_the_constructor(options, words):
    with pytest.raises(ValueError, match=words):
        convsmith.Conv2d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **options})


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (("cuda", "cpu", "cpu"), "Input type .* and weight type .* should be the same"),
        (("cpu", "cuda", "cuda"), "Input type .* and weight type .* should be the same"),
        (("cuda", "cuda", "cpu"), ""),
    ],
)
def test_devices(devices, words):
    tensors = [tensor.to(device) for tensor, device in zip((x(), w(), b()), devices, strict=True)]
    with pytest.raises(RuntimeError, match=words) as theirs:
        F.conv2d(*tensors)
    with pytest.raises(RuntimeError, match=words) as ours:
        convsmith.conv2d(*tensors)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("devices", [(0, 1, 1), (0, 0, 1), (1, 0, 0)])
def test_two_gpus(devices):
    tensors = [
        tensor.to(f"cuda:{device}") for tensor, device in zip((x(), w(), b()), devices, strict=True)
    ]
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        convsmith.conv2d(*tensors)


@backends("operators")
def test_padding_same_warns_once_of_a_copy(backend):
    from convsmith import functional

    functional._warn_of_copy.cache_clear()
    arguments = (x(), w(6, 4, 2, 2), None, 1, "same")
    with pytest.warns(UserWarning, match="Using padding='same' with even kernel lengths"):
        convsmith.conv2d(*arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convsmith.conv2d(*arguments)
        convsmith.conv2d(x(), w(), None, 1, "same")
