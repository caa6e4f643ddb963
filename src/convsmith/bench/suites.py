"""The layers that are measured.

`core` holds the 2D convolutions of KernelBench level 1 (kb, by problem number; of problem 86 the
pointwise half) and layers of well-known networks: ResNet-50 (rn50), U-Net, ResNeXt, ConvNeXt,
RepLKNet, MobileNetV2 (mbv2), DeepLab and super-resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from convsmith.spec import (
    ConvSpec,
    Direction,
    Pair,
    Precision,
    Shape,
    channels_last_strides,
    contiguous_strides,
    output_extent,
)

DTYPE = {
    Precision.TF32: torch.float32,
    Precision.FLOAT32: torch.float32,
    Precision.FLOAT16: torch.float16,
    Precision.BFLOAT16: torch.bfloat16,
}


class Layout(str, Enum):
    """How tensors lie in memory."""

    NCHW = "nchw"
    NHWC = "nhwc"

    @property
    def memory_format(self) -> torch.memory_format:
        """PyTorch's name for it."""
        return torch.contiguous_format if self is Layout.NCHW else torch.channels_last


@dataclass(frozen=True)
class Layer:
    """A convolution without bias.

    Args:
        name: as it stands in records.
        input_shape: (batch, channels, height, width).
        out_channels, kernel_size, stride, padding, dilation, groups: as in ``nn.Conv2d``.
    """

    name: str
    input_shape: Shape
    out_channels: int
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def weight_shape(self) -> Shape:
        return (self.out_channels, self.input_shape[1] // self.groups, *self.kernel_size)

    @property
    def output_shape(self) -> Shape:
        height, width = map(
            output_extent,
            self.input_shape[2:],
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        return (self.input_shape[0], self.out_channels, height, width)

    def spec(self, direction: Direction, precision: Precision, layout: Layout) -> ConvSpec:
        """The ConvSpec of one measurement of this layer; all its tensors lie in ``layout``."""
        strides = contiguous_strides if layout is Layout.NCHW else channels_last_strides
        return ConvSpec(
            direction,
            *self.input_shape,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            DTYPE[precision],
            precision,
            has_bias=False,
            input_strides=strides(self.input_shape),
            weight_strides=strides(self.weight_shape),
            output_strides=strides(self.output_shape),
        )


CORE = (
    Layer("kb50", (256, 3, 224, 224), 96, (11, 11), stride=(4, 4), padding=(2, 2)),
    Layer("kb55", (8, 64, 512, 1024), 128, (3, 3)),
    Layer("kb56", (8, 64, 512, 256), 128, (5, 7)),
    Layer("kb62", (8, 32, 512, 512), 64, (5, 9)),
    Layer("kb63", (16, 16, 1024, 1024), 128, (3, 3)),
    Layer("kb80", (8, 32, 512, 512), 64, (5, 9), padding=(2, 4), dilation=(2, 3)),
    Layer("kb82", (16, 64, 512, 512), 64, (3, 3), groups=64),
    Layer("kb83", (64, 8, 512, 512), 8, (3, 1), groups=8),
    Layer("kb84", (64, 128, 256, 512), 128, (3, 3), groups=128),
    Layer("kb85", (32, 128, 128, 256), 128, (3, 7), groups=128),
    Layer("kb86", (16, 64, 512, 512), 128, (1, 1)),
    Layer("kb87", (16, 64, 1024, 1024), 128, (1, 1)),
    Layer("rn50_stem", (64, 3, 224, 224), 64, (7, 7), stride=(2, 2), padding=(3, 3)),
    Layer("rn50_l1_3x3", (64, 64, 56, 56), 64, (3, 3), padding=(1, 1)),
    Layer("rn50_l2_3x3s2", (64, 128, 56, 56), 128, (3, 3), stride=(2, 2), padding=(1, 1)),
    Layer("rn50_l3_3x3", (64, 256, 14, 14), 256, (3, 3), padding=(1, 1)),
    Layer("rn50_l4_3x3", (64, 512, 7, 7), 512, (3, 3), padding=(1, 1)),
    Layer("rn50_l1_1x1", (64, 64, 56, 56), 256, (1, 1)),
    Layer("rn50_l3_1x1", (64, 1024, 14, 14), 256, (1, 1)),
    Layer("unet_64", (4, 64, 572, 572), 64, (3, 3)),
    Layer("unet_256", (4, 256, 136, 136), 256, (3, 3)),
    Layer("resnext_g32", (64, 128, 56, 56), 128, (3, 3), padding=(1, 1), groups=32),
    Layer("convnext_dw7", (64, 96, 56, 56), 96, (7, 7), padding=(3, 3), groups=96),
    Layer("convnext_dw7_l3", (64, 384, 14, 14), 384, (7, 7), padding=(3, 3), groups=384),
    Layer("replk_dw31", (32, 128, 56, 56), 128, (31, 31), padding=(15, 15), groups=128),
    Layer("mbv2_dw3s2", (64, 144, 56, 56), 144, (3, 3), (2, 2), padding=(1, 1), groups=144),
    Layer("deeplab_dil12", (8, 256, 65, 65), 256, (3, 3), padding=(12, 12), dilation=(12, 12)),
    Layer("superres_b1", (1, 64, 1080, 1920), 64, (3, 3), padding=(1, 1)),
    Layer("small_b1", (1, 256, 14, 14), 256, (3, 3), padding=(1, 1)),
)

SUITES = {"core": CORE}

# What a complete record of a suite holds.
DIRECTIONS = tuple(Direction)
PRECISIONS = (Precision.TF32, Precision.FLOAT32)
