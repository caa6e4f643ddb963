"""Every way in which a module can be an nn.Conv2d."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations


class Standardised(nn.Conv2d):
    """Standardises its weight, then convolves as its base does."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Functional(nn.Conv2d):
    """Calls a function of PyTorch: nobody else can compute that."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, padding=1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(4, 4, 3, padding=1)
        self.shared = self.plain
        self.standardised = Standardised(4, 4, 3, padding=1)
        self.functional = Functional(4, 4, 3)
        self.parametrized = parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.lazy = nn.LazyConv2d(4, 3, padding=1)

    def forward(self, x):
        for layer in self.children():
            x = torch.tanh(layer(x))
        return self.shared(x)


def get_inputs():
    return [torch.rand(2, 4, 6, 5)]


def get_init_inputs():
    return []
