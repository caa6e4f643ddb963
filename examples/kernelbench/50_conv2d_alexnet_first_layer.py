"""AlexNet's first convolution: 3 channels, 11 x 11 kernel, stride 4, with bias.

Shape of KernelBench level 1, problem 50.
"""

import torch
import torch.nn as nn


class Model(nn.Module):
    """The first layer alone; ``num_classes`` is part of the constructor only, as in the problem."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, kernel_size=11, stride=4, padding=2)

    def forward(self, x):
        return self.conv1(x)


batch_size = 256
num_classes = 1000
height = 224
width = 224


def get_inputs():
    return [torch.rand(batch_size, 3, height, width)]


def get_init_inputs():
    return [num_classes]
