"""A small residual network: what surrounds convolutions in real models.

Its docstrings say what a checker of words takes for code: in the forward pass, try: to skip
nothing, except where the shortcut is the identity.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH: int = 6
SCALE = 1 / math.sqrt(2)


@dataclass
class Sizes:
    """Channels of the stages, one pass after the other."""

    stages: list[int] = field(default_factory=lambda: [WIDTH, 2 * WIDTH])


class Unused:
    """A class whose only statement is this docstring: pass."""


def norm_relu(channels: int) -> nn.Sequential:
    """Normalise, then ReLU."""
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(channels), relu=nn.ReLU()))


class Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int | tuple[int, int] = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.between = norm_relu(out)
        self.second = nn.Conv2d(out, out, (3, 1), padding=(1, 0), groups=2)
        self.shortcut = nn.Conv2d(channels, out, 1, stride) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The forward pass of one block."""
        return (self.second(self.between(self.first(x))) + self.shortcut(x)) * SCALE


class Model(nn.Module):
    def __init__(self, classes: int, *, sizes: Sizes | None = None, dropout: float = 0.0):
        """Makes the layers; `pass` sizes to change them."""
        super(Model, self).__init__()  # noqa: UP008 (as KernelBench's own files have it)
        stages = (sizes or Sizes()).stages
        self.stem = nn.Conv2d(3, stages[0], 3)
        blocks = []
        for channels, out in zip(stages, [*stages[1:], stages[-1]], strict=True):
            stride = (2, 1) if out > channels else 1
            blocks.append(Block(channels, out, stride))
        self.blocks = nn.ModuleList(blocks)
        self.dropout = dropout
        self.head = nn.Linear(stages[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if mask is None:
            pass
        else:
            x = x * mask
        return self.head(F.dropout(x.mean((2, 3)), self.dropout))


def get_inputs():
    return [torch.rand(4, 3, 12, 10)]


def get_init_inputs():
    return [5]
