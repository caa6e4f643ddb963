"""A problem, right solutions, and wrong ones: each the right one with a small change."""

from __future__ import annotations

from typing import NamedTuple

PROBLEM = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, bias=True):
        super().__init__()
        self.conv2d = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)

    def forward(self, x):
        return self.conv2d(x)


def get_inputs():
    return [torch.rand(2, 3, 13, 18)]


def get_init_inputs():
    return [3, 6, 3]
"""

# The convolution is an autograd.Function of its own, as in a solution with kernels.
SOLUTION = """
import torch
import torch.nn.functional as F
from torch import nn


def cut(x):
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def to_tf32(x):
    bits = x.contiguous().view(torch.int32)
    rounded = ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x)


class Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        ctx.save_for_backward(x, weight)
        Convolution.last = x, weight
        ctx.geometry = stride, padding
        y = F.conv2d(x, weight, bias, stride, padding)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        stride, padding = ctx.geometry
        dx = torch.nn.grad.conv2d_input(x.shape, weight, dy, stride, padding)
        dw = torch.nn.grad.conv2d_weight(x, weight.shape, dy, stride, padding)
        db = dy.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return dx, dw, db, None, None


class ModelNew(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, bias=True):
        super().__init__()
        self.conv2d = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)

    def forward(self, x):
        c = self.conv2d
        return Convolution.apply(x, c.weight, c.bias, c.stride, c.padding)
"""


class Change(NamedTuple):
    """One change of SOLUTION.

    Attributes:
        old, new: what is replaced by what.
        tests: those that must find it wrong.
        others: whether other tests may find it wrong too.
        alone: run only those tests; without guards the solution would damage this process.
    """

    old: str
    new: str
    tests: set[str]
    others: bool = False
    alone: bool = False


FORWARD_LINE = "        y = F.conv2d(x, weight, bias, stride, padding)\n"
APPLY_LINE = "        return Convolution.apply(x, c.weight, c.bias, c.stride, c.padding)\n"
CONV2D_LINE = (
    "        self.conv2d = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, "
    "bias=bias)\n"
)
ENDS = "no write outside its tensors"


def convolution(x: str = "x", weight: str = "weight", bias: str = "bias", rest: str = "") -> str:
    """FORWARD_LINE with other operands, and with ``rest`` after the call."""
    return f"        y = F.conv2d({x}, {weight}, {bias}, stride, padding){rest}\n"


VALUES = {
    # What the numbers are.
    "ignores the padding": Change(
        FORWARD_LINE,
        "        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), 'replicate')\n"
        "        y = F.conv2d(x, weight, bias, stride)\n",
        {"with padding=1", "with padding=(2, 1)", "with stride=(3, 2), padding=(2, 1), bias=False"},
    ),
    "ignores the bias": Change(
        FORWARD_LINE, convolution(bias="None"), {"the problem's inputs", "rand", "zeros"}, True
    ),
    "transposes the kernel": Change(
        FORWARD_LINE, convolution(weight="weight.mT"), {"the problem's inputs", "randn"}, True
    ),
    "half precision inside": Change(
        FORWARD_LINE,
        convolution(
            "x.half()", "weight.half()", "None if bias is None else bias.half()", ".float()"
        ),
        {"zeros", "accuracy, float32 class"},
    ),
    "TF32 whatever the switch says": Change(
        FORWARD_LINE,
        convolution("to_tf32(x)", "to_tf32(weight)"),
        {"accuracy, float32 class"},
    ),
    "operands cut to TF32": Change(
        FORWARD_LINE,
        convolution("cut(x)", "cut(weight)"),
        {"rand", "randn", "wide range", "accuracy, TF32 class", "accuracy, float32 class"},
        True,
    ),
    "loses NaN": Change(FORWARD_LINE, convolution("x.nan_to_num()"), {"inf and NaN"}),
    "splits operands without care for inf": Change(
        FORWARD_LINE,
        "        high = to_tf32(x)\n"
        + convolution("high")
        + "        y = y + F.conv2d(x - high, weight, None, stride, padding)\n",
        {"inf and NaN"},
    ),
    "returns float64": Change(FORWARD_LINE, convolution(rest=".double()"), {"rand"}, True),
    "returns another shape": Change(FORWARD_LINE, convolution(rest=".flatten(2)"), {"rand"}, True),
}

SHAPES = {
    "half of the result for a batch of one": Change(
        FORWARD_LINE,
        FORWARD_LINE + "        y = y * (0.5 if len(x) == 1 else 1)\n",
        {"other batches", "other heights and widths"},
    ),
    "takes every input for contiguous": Change(
        APPLY_LINE,
        "        if not x.is_contiguous():\n"
        "            x = x.as_strided(x.shape, torch.empty(x.shape).stride())\n" + APPLY_LINE,
        {
            "every second column of a tensor",
            "a transposed tensor",
            "an expanded tensor",
            "a channels_last tensor",
            "gradients, other input layouts",
        },
    ),
    "refuses channels_last": Change(
        APPLY_LINE,
        "        assert not x.is_contiguous(memory_format=torch.channels_last), 'not NCHW'\n"
        + APPLY_LINE,
        {"a channels_last tensor", "gradients, other input layouts"},
    ),
}

CALLS = {
    "keeps results by address": Change(
        APPLY_LINE,
        "        if torch.is_grad_enabled():\n    " + APPLY_LINE + ""
        "        kept = self.__dict__.setdefault('kept', {})\n"
        "        if (x.data_ptr(), x.shape) not in kept:\n"
        "            y = Convolution.apply(x, c.weight, c.bias, c.stride, c.padding)\n"
        "            kept[x.data_ptr(), x.shape] = y\n"
        "        return kept[x.data_ptr(), x.shape]\n",
        {"same address, new contents", "changed weights"},
        True,  # any two inputs may have got the same address
    ),
    "keeps packed weights": Change(
        APPLY_LINE,
        "        if not hasattr(self, 'packed'):\n"
        "            self.packed = [c.weight.detach().clone()]\n"
        "        w = c.weight + (self.packed[0] - c.weight).detach()\n"
        "        return Convolution.apply(x, w, c.bias, c.stride, c.padding)\n",
        {"changed weights"},
    ),
    "one output buffer for all calls": Change(
        APPLY_LINE,
        "        if torch.is_grad_enabled():\n    " + APPLY_LINE + ""
        "        y = F.conv2d(x, c.weight, c.bias, c.stride, c.padding)\n"
        "        if getattr(self, 'out', None) is None or self.out[0].shape != y.shape:\n"
        "            self.out = [y]\n"
        "        return self.out[0].copy_(y)\n",
        {"an earlier result is kept"},
    ),
    "other bits at each call": Change(
        FORWARD_LINE,
        FORWARD_LINE + "        y = y + 1e-7 * y * torch.rand_like(y)\n",
        {"twice in a row", "the problem's inputs, twice"},
    ),
}

MEMORY = {
    "writes into its input": Change(
        FORWARD_LINE,
        FORWARD_LINE + "        x.data.clamp_(-1, 1)\n",
        {"inputs and weights unchanged"},
        True,
    ),
    "writes one element too many": Change(
        FORWARD_LINE,
        FORWARD_LINE + "        out = torch.empty_like(y)\n"
        "        out.as_strided((out.numel() + 1,), (1,)).fill_(0)\n"
        "        y = out.copy_(y)\n",
        {ENDS},
        alone=True,
    ),
    "writes before its input": Change(
        FORWARD_LINE,
        FORWARD_LINE + "        x.data.as_strided((1,), (1,), x.storage_offset() - 3).fill_(0)\n",
        {ENDS},
        alone=True,
    ),
    "leaves the last column unwritten": Change(
        FORWARD_LINE,
        FORWARD_LINE + "        out = torch.empty_like(y)\n"
        "        out[..., :-1] = y[..., :-1]\n"
        "        y = out\n",
        {ENDS},
        alone=True,
    ),
    "reads past the end of its input": Change(
        FORWARD_LINE,
        FORWARD_LINE + "        past = x.storage_offset() + x.numel()\n"
        "        y = y + 0 * x.as_strided((1,), (1,), past)\n",
        {ENDS},
        alone=True,
    ),
}

TRAINING = {
    "cannot be trained": Change(
        APPLY_LINE,
        "        with torch.no_grad():\n    " + APPLY_LINE,
        {"gradients", "gradients of the problem's inputs"},
        True,
    ),
    "gradient of the weight twice as large": Change(
        "        db = dy",
        "        dw = 2 * dw\n        db = dy",
        {"gradient of conv2d.weight", "gradients of the problem's inputs"},
        True,
    ),
    "no gradient of the bias": Change(
        "        return dx, dw, db, None, None\n",
        "        return dx, dw, None, None, None\n",
        {"gradient of conv2d.bias", "gradients of the problem's inputs"},
        True,
    ),
    "takes the upstream gradient for contiguous": Change(
        "        dx = torch.nn",
        "        dy = dy.as_strided(dy.shape, torch.empty(dy.shape).stride())\n"
        "        dx = torch.nn",
        {"gradients, other upstream layouts"},
    ),
    "gradients only if the input wants one": Change(
        "        stride, padding = ctx.geometry\n",
        "        stride, padding = ctx.geometry\n        assert ctx.needs_input_grad[0]\n",
        {"gradients, only some of them"},
    ),
    "remembers only the last input": Change(
        "        x, weight = ctx.saved_tensors\n",
        "        x, weight = Convolution.last\n",
        {"gradients, used twice in one graph"},
    ),
}

INTERFACE = {
    "draws before the weights": Change(
        CONV2D_LINE, "        torch.rand(1)\n" + CONV2D_LINE, {"equal weights from equal seeds"}
    ),
    "draws after the weights": Change(
        CONV2D_LINE, CONV2D_LINE + "        torch.rand(1)\n", {"equal weights from equal seeds"}
    ),
    "another default": Change(
        "stride=1, padding=0, bias=True",
        "stride=1, padding=1, bias=True",
        {"constructor's signature", "the problem's inputs"},
        True,
    ),
    "exchanges two arguments": Change(
        "stride=1, padding=0, bias=True",
        "padding=0, stride=1, bias=True",
        {"constructor's signature", "with stride=2"},
        True,
    ),
    "another argument of forward": Change(
        "def forward(self, x):\n",
        "def forward(self, image):\n        x = image\n",
        {"forward's signature"},
    ),
    "another name of the weights": Change(
        "self.conv2d",
        "self.convolution",
        {"parameters and buffers", "state_dict, loaded both ways"},
    ),
    "a frozen weight": Change(
        CONV2D_LINE,
        CONV2D_LINE + "        self.conv2d.weight.requires_grad_(False)\n",
        {"parameters and buffers", "gradient of conv2d.weight"},
        True,
    ),
}

WRONG = VALUES | SHAPES | CALLS | MEMORY | TRAINING | INTERFACE

# Not what Model computes with, and right all the same.
RIGHT = {
    "unchanged": SOLUTION,
    "TF32 where the switch is on": SOLUTION.replace(
        FORWARD_LINE,
        "        if torch.backends.cudnn.allow_tf32:\n"
        "            x, weight = to_tf32(x), to_tf32(weight)\n" + FORWARD_LINE,
    ),
    "another order of the sum": SOLUTION.replace(
        FORWARD_LINE,
        "        patches = F.unfold(x, weight.shape[2:], 1, padding, stride)\n"
        "        y = 0\n"
        "        for column, row in zip(weight.flatten(1).mT, patches.unbind(1)):\n"
        "            y = y + column[:, None] * row[:, None]\n"
        "        rows = (x.shape[2] + 2 * padding[0] - weight.shape[2]) // stride[0] + 1\n"
        "        y = y.unflatten(2, (rows, -1))\n"
        "        y = y if bias is None else y + bias[:, None, None]\n",
    ),
}


def changed(name: str) -> str:
    """The source of one wrong solution."""
    change = WRONG[name]
    assert change.old in SOLUTION, change.old
    return SOLUTION.replace(change.old, change.new)
