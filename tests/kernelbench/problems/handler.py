"""A problem that needs an exception handler, which KernelBench refuses in a solution."""

import torch
from torch import nn

try:
    from missing_package import activation
except ImportError:
    activation = torch.relu


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)

    def forward(self, x):
        return activation(self.conv(x))


def get_inputs():
    return [torch.rand(1, 2, 5, 5)]


def get_init_inputs():
    return []
