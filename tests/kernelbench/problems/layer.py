"""One convolution with whatever arguments nn.Conv2d takes."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        self.conv = nn.Conv2d(*args, **kwargs)

    def forward(self, x):
        return self.conv(x)


def get_inputs():
    return [torch.rand(2, 4, 9, 8)]


def get_init_inputs():
    return [4, 6, 3]
