"""A problem file: a convolution with something around it."""

import torch
import torch.nn as nn


class Model(nn.Module):
    """A convolution and an activation, scaled."""

    def __init__(self, channels: int, filters: int, scale: float = 2.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, (3, 2), stride=2, padding=1, bias=True)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x)) * self.scale


def get_inputs():
    return [torch.rand(2, 5, 12, 10)]


def get_init_inputs():
    return [5, 7]
