"""The layers that are measured.

`core` holds the 2D convolutions of KernelBench level 1 (kb, by problem number; of problem 86 the
pointwise half) and layers of well-known networks: ResNet-50 (rn50), U-Net, ResNeXt, ConvNeXt,
RepLKNet, MobileNetV2 (mbv2), DeepLab and super-resolution.

`depthwise` sweeps what groups of one channel, and of two to seven, come in: layers of well-known
networks and awkward ones. A name tells the layer: batch, channels, plane, filter (k), and where
they are not the usual ones, stride (s), dilation (d), padding (p; the usual one keeps the plane's
size at stride 1) and filters for each channel (m). `dw` has one channel a group; `g3f5` groups of 3
channels with 5 filters each.

`dense` sweeps what tensor cores are for, groups=1 and groups of eight channels or more, in the same
way. Its names read the same, but for `c`: channels and filters are both told, as `c64k128`, and
groups (g) come last.
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

DEPTHWISE = (
    # MobileNet V1 to V3, MNASNet and ShuffleNetV2.
    Layer("dw_b1_c32_112_k3", (1, 32, 112, 112), 32, (3, 3), (1, 1), (1, 1), groups=32),
    Layer("dw_b64_c32_112_k3", (64, 32, 112, 112), 32, (3, 3), (1, 1), (1, 1), groups=32),
    Layer("dw_b64_c64_112_k3_s2", (64, 64, 112, 112), 64, (3, 3), (2, 2), (1, 1), groups=64),
    Layer("dw_b256_c512_14_k3", (256, 512, 14, 14), 512, (3, 3), (1, 1), (1, 1), groups=512),
    Layer("dw_b128_c1024_7_k3", (128, 1024, 7, 7), 1024, (3, 3), (1, 1), (1, 1), groups=1024),
    Layer("dw_b32_c96_112_k3_s2", (32, 96, 112, 112), 96, (3, 3), (2, 2), (1, 1), groups=96),
    Layer("dw_b1_c960_7_k3", (1, 960, 7, 7), 960, (3, 3), (1, 1), (1, 1), groups=960),
    Layer("dw_b64_c72_56_k5_s2", (64, 72, 56, 56), 72, (5, 5), (2, 2), (2, 2), groups=72),
    Layer("dw_b128_c120_28_k5", (128, 120, 28, 28), 120, (5, 5), (1, 1), (2, 2), groups=120),
    Layer("dw_b64_c672_14_k5_s2", (64, 672, 14, 14), 672, (5, 5), (2, 2), (2, 2), groups=672),
    Layer("dw_b32_c576_14_k5", (32, 576, 14, 14), 576, (5, 5), (1, 1), (2, 2), groups=576),
    Layer("dw_b256_c24_56_k3_s2", (256, 24, 56, 56), 24, (3, 3), (2, 2), (1, 1), groups=24),
    # EfficientNet.
    Layer("dw_b32_c144_75_k5_s2", (32, 144, 75, 75), 144, (5, 5), (2, 2), (2, 2), groups=144),
    Layer("dw_b32_c1152_7_k5", (32, 1152, 7, 7), 1152, (5, 5), (1, 1), (2, 2), groups=1152),
    Layer("dw_b8_c2048_15_k5", (8, 2048, 15, 15), 2048, (5, 5), (1, 1), (2, 2), groups=2048),
    # The four stages of ConvNeXt.
    Layer("dw_b1_c96_56_k7", (1, 96, 56, 56), 96, (7, 7), (1, 1), (3, 3), groups=96),
    Layer("dw_b32_c192_28_k7", (32, 192, 28, 28), 192, (7, 7), (1, 1), (3, 3), groups=192),
    Layer("dw_b256_c384_14_k7", (256, 384, 14, 14), 384, (7, 7), (1, 1), (3, 3), groups=384),
    Layer("dw_b32_c768_7_k7", (32, 768, 7, 7), 768, (7, 7), (1, 1), (3, 3), groups=768),
    # Xception, dilated as in DeepLabV3+.
    Layer("dw_b4_c128_257_k3_s2", (4, 128, 257, 257), 128, (3, 3), (2, 2), (1, 1), groups=128),
    Layer("dw_b8_c728_33_k3_d2", (8, 728, 33, 33), 728, (3, 3), (1, 1), (2, 2), (2, 2), 728),
    Layer("dw_b8_c1536_33_k3_d4", (8, 1536, 33, 33), 1536, (3, 3), (1, 1), (4, 4), (4, 4), 1536),
    # RepLKNet: filters as large as the plane.
    Layer("dw_b8_c128_56_k31", (8, 128, 56, 56), 128, (31, 31), (1, 1), (15, 15), groups=128),
    Layer("dw_b8_c256_28_k29", (8, 256, 28, 28), 256, (29, 29), (1, 1), (14, 14), groups=256),
    Layer("dw_b32_c1024_7_k13", (32, 1024, 7, 7), 1024, (13, 13), (1, 1), (6, 6), groups=1024),
    # SegNeXt's strips.
    Layer("dw_b16_c64_128_k1x7", (16, 64, 128, 128), 64, (1, 7), (1, 1), (0, 3), groups=64),
    Layer("dw_b16_c64_128_k7x1", (16, 64, 128, 128), 64, (7, 1), (1, 1), (3, 0), groups=64),
    # Large planes: Lite-HRNet, detection, image restoration.
    Layer("dw_b32_c40_96x72_k3", (32, 40, 96, 72), 40, (3, 3), (1, 1), (1, 1), groups=40),
    Layer("dw_b2_c36_200x304_k3", (2, 36, 200, 304), 36, (3, 3), (1, 1), (1, 1), groups=36),
    Layer("dw_b1_c64_512_k3", (1, 64, 512, 512), 64, (3, 3), (1, 1), (1, 1), groups=64),
    Layer("dw_b2_c32_512_k9", (2, 32, 512, 512), 32, (9, 9), (1, 1), (4, 4), groups=32),
    # Awkward ones.
    Layer("dw_b3_c17_127_k2", (3, 17, 127, 127), 17, (2, 2), groups=17),
    Layer("dw_b16_c60_113_k4_s2", (16, 60, 113, 113), 60, (4, 4), (2, 2), (1, 1), groups=60),
    Layer("dw_b64_c256_31_k1_s2", (64, 256, 31, 31), 256, (1, 1), (2, 2), groups=256),
    Layer("dw_b32_c128_13x29_k3x5", (32, 128, 13, 29), 128, (3, 5), (1, 1), (1, 2), groups=128),
    Layer("dw_b16_c48_57_k3_s1x2", (16, 48, 57, 57), 48, (3, 3), (1, 2), (1, 1), groups=48),
    Layer("dw_b8_c96_28_k21", (8, 96, 28, 28), 96, (21, 21), (1, 1), (10, 10), groups=96),
    Layer("dw_b8_c160_63x31_k1x31", (8, 160, 63, 31), 160, (1, 31), (1, 1), (0, 15), groups=160),
    Layer("dw_b16_c80_45_k11_p0", (16, 80, 45, 45), 80, (11, 11), groups=80),
    Layer("dw_b4_c30_57_k15_d2", (4, 30, 57, 57), 30, (15, 15), (1, 1), (14, 14), (2, 2), 30),
    Layer("dw_b6_c30_57_k3_d3_p7", (6, 30, 57, 57), 30, (3, 3), (1, 1), (7, 7), (3, 3), 30),
    # Several filters for each channel.
    Layer("dw_b32_c64_28_k3_m2", (32, 64, 28, 28), 128, (3, 3), (1, 1), (1, 1), groups=64),
    Layer("dw_b8_c3_224_k7_s2_m4", (8, 3, 224, 224), 12, (7, 7), (2, 2), (3, 3), groups=3),
    # Narrow groups; that of 4 is ResNeXt's first stage.
    Layer("g2f2_b32_c64_56_k3", (32, 64, 56, 56), 64, (3, 3), (1, 1), (1, 1), groups=32),
    Layer("g3f5_b16_c96_28_k3", (16, 96, 28, 28), 160, (3, 3), (1, 1), (1, 1), groups=32),
    Layer("g4f4_b16_c128_56_k3", (16, 128, 56, 56), 128, (3, 3), (1, 1), (1, 1), groups=32),
    Layer("g5f5_b8_c160_29_k3_s2", (8, 160, 29, 29), 160, (3, 3), (2, 2), (1, 1), groups=32),
    Layer("g7f14_b8_c56_57_k5", (8, 56, 57, 57), 112, (5, 5), (1, 1), (2, 2), groups=8),
)

DENSE = (
    # VGG.
    Layer("c_b32_c3k64_224_k3", (32, 3, 224, 224), 64, (3, 3), (1, 1), (1, 1)),
    Layer("c_b8_c64k64_224_k3", (8, 64, 224, 224), 64, (3, 3), (1, 1), (1, 1)),
    Layer("c_b16_c256k256_56_k3", (16, 256, 56, 56), 256, (3, 3), (1, 1), (1, 1)),
    Layer("c_b32_c512k512_28_k3", (32, 512, 28, 28), 512, (3, 3), (1, 1), (1, 1)),
    Layer("c_b64_c512k512_14_k3", (64, 512, 14, 14), 512, (3, 3), (1, 1), (1, 1)),
    # AlexNet, whose second layer was first published in two groups.
    Layer("c_b16_c3k64_224_k11_s4_p2", (16, 3, 224, 224), 64, (11, 11), (4, 4), (2, 2)),
    Layer("c_b64_c64k192_27_k5", (64, 64, 27, 27), 192, (5, 5), (1, 1), (2, 2)),
    Layer("c_b32_c96k256_27_k5_g2", (32, 96, 27, 27), 256, (5, 5), (1, 1), (2, 2), groups=2),
    # ResNet-18 and ResNet-50.
    Layer("c_b1_c3k64_224_k7_s2", (1, 3, 224, 224), 64, (7, 7), (2, 2), (3, 3)),
    Layer("c_b64_c64k128_56_k3_s2", (64, 64, 56, 56), 128, (3, 3), (2, 2), (1, 1)),
    Layer("c_b1_c128k128_28_k3", (1, 128, 28, 28), 128, (3, 3), (1, 1), (1, 1)),
    Layer("c_b256_c256k256_14_k3", (256, 256, 14, 14), 256, (3, 3), (1, 1), (1, 1)),
    Layer("c_b1_c512k512_7_k3", (1, 512, 7, 7), 512, (3, 3), (1, 1), (1, 1)),
    Layer("c_b32_c256k512_56_k1_s2", (32, 256, 56, 56), 512, (1, 1), (2, 2)),
    Layer("c_b256_c2048k512_7_k1", (256, 2048, 7, 7), 512, (1, 1)),
    Layer("c_b64_c512k2048_7_k1", (64, 512, 7, 7), 2048, (1, 1)),
    # Inception V3.
    Layer("c_b32_c3k32_299_k3_s2_p0", (32, 3, 299, 299), 32, (3, 3), (2, 2)),
    Layer("c_b32_c288k384_35_k3_s2_p0", (32, 288, 35, 35), 384, (3, 3), (2, 2)),
    Layer("c_b32_c48k64_35_k5", (32, 48, 35, 35), 64, (5, 5), (1, 1), (2, 2)),
    Layer("c_b32_c128k128_17_k1x7", (32, 128, 17, 17), 128, (1, 7), (1, 1), (0, 3)),
    Layer("c_b32_c160k192_17_k7x1", (32, 160, 17, 17), 192, (7, 1), (1, 1), (3, 0)),
    Layer("c_b16_c384k384_8_k1x3", (16, 384, 8, 8), 384, (1, 3), (1, 1), (0, 1)),
    # DenseNet.
    Layer("c_b32_c96k128_56_k1", (32, 96, 56, 56), 128, (1, 1)),
    Layer("c_b64_c128k32_28_k3", (64, 128, 28, 28), 32, (3, 3), (1, 1), (1, 1)),
    Layer("c_b64_c1024k512_14_k1", (64, 1024, 14, 14), 512, (1, 1)),
    # Pointwise layers of EfficientNet and ShuffleNetV2.
    Layer("c_b32_c16k96_112_k1", (32, 16, 112, 112), 96, (1, 1)),
    Layer("c_b64_c24k144_56_k1", (64, 24, 56, 56), 144, (1, 1)),
    Layer("c_b128_c1152k192_7_k1", (128, 1152, 7, 7), 192, (1, 1)),
    Layer("c_b128_c24k58_56_k1", (128, 24, 56, 56), 58, (1, 1)),
    Layer("c_b64_c116k116_14_k1", (64, 116, 14, 14), 116, (1, 1)),
    # ConvNeXt's patches.
    Layer("c_b256_c3k96_224_k4_s4_p0", (256, 3, 224, 224), 96, (4, 4), (4, 4)),
    # Wide groups: ShuffleNet, ResNeXt and RegNet.
    Layer("c_b32_c240k60_28_k1_g3", (32, 240, 28, 28), 60, (1, 1), groups=3),
    Layer("c_b32_c256k256_56_k3_g32", (32, 256, 56, 56), 256, (3, 3), (1, 1), (1, 1), groups=32),
    Layer("c_b8_c1024k1024_14_k3_g32", (8, 1024, 14, 14), 1024, (3, 3), (1, 1), (1, 1), groups=32),
    Layer("c_b32_c432k432_28_k3_s2_g9", (32, 432, 28, 28), 432, (3, 3), (2, 2), (1, 1), groups=9),
    Layer("c_b64_c440k440_7_k3_g55", (64, 440, 7, 7), 440, (3, 3), (1, 1), (1, 1), groups=55),
    # U-Net: no padding, and one channel of image.
    Layer("c_b1_c1k64_572_k3_p0", (1, 1, 572, 572), 64, (3, 3)),
    Layer("c_b2_c128k64_392_k3_p0", (2, 128, 392, 392), 64, (3, 3)),
    Layer("c_b1_c1024k512_56_k3_p0", (1, 1024, 56, 56), 512, (3, 3)),
    Layer("c_b4_c64k2_388_k1", (4, 64, 388, 388), 2, (1, 1)),
    # YOLO and its CSP stages.
    Layer("c_b8_c3k32_640_k6_s2", (8, 3, 640, 640), 32, (6, 6), (2, 2), (2, 2)),
    Layer("c_b8_c64k128_160_k3_s2", (8, 64, 160, 160), 128, (3, 3), (2, 2), (1, 1)),
    Layer("c_b4_c128k128_76_k3", (4, 128, 76, 76), 128, (3, 3), (1, 1), (1, 1)),
    Layer("c_b8_c512k255_20_k1", (8, 512, 20, 20), 255, (1, 1)),
    # Discriminators of DCGAN and pix2pix.
    Layer("c_b128_c3k64_64_k4_s2", (128, 3, 64, 64), 64, (4, 4), (2, 2), (1, 1)),
    Layer("c_b128_c256k512_8_k4_s2", (128, 256, 8, 8), 512, (4, 4), (2, 2), (1, 1)),
    Layer("c_b16_c512k1_31_k4", (16, 512, 31, 31), 1, (4, 4), (1, 1), (1, 1)),
    # SegNet, and DeepLab's dilated filters.
    Layer("c_b2_c64k64_360x480_k3", (2, 64, 360, 480), 64, (3, 3), (1, 1), (1, 1)),
    Layer("c_b4_c512k512_22x30_k3", (4, 512, 22, 30), 512, (3, 3), (1, 1), (1, 1)),
    Layer("c_b4_c512k512_41_k3_d2", (4, 512, 41, 41), 512, (3, 3), (1, 1), (2, 2), (2, 2)),
    Layer("c_b2_c2048k256_33_k3_d6", (2, 2048, 33, 33), 256, (3, 3), (1, 1), (6, 6), (6, 6)),
    Layer("c_b1_c2048k256_65_k3_d12", (1, 2048, 65, 65), 256, (3, 3), (1, 1), (12, 12), (12, 12)),
    # SRCNN: one channel in, one out.
    Layer("c_b1_c1k64_1024_k9", (1, 1, 1024, 1024), 64, (9, 9), (1, 1), (4, 4)),
    Layer("c_b1_c32k1_2048_k5", (1, 32, 2048, 2048), 1, (5, 5), (1, 1), (2, 2)),
    # Sound: WaveNet's filters along time, and a spectrogram.
    Layer("c_b8_c32k64_1x2000_k1x2_d1x8_p0", (8, 32, 1, 2000), 64, (1, 2), (1, 1), (0, 0), (1, 8)),
    Layer("c_b8_c32k32_81x201_k11_s2x1", (8, 32, 81, 201), 32, (11, 11), (2, 1), (5, 5)),
    # Awkward ones.
    Layer("c_b3_c5k7_113_k2", (3, 5, 113, 113), 7, (2, 2)),
    Layer("c_b5_c96k24_61x83_k3x5_d3x2", (5, 96, 61, 83), 24, (3, 5), (1, 1), (3, 4), (3, 2)),
    Layer("c_b7_c13k29_57x91_k7_s3x2", (7, 13, 57, 91), 29, (7, 7), (3, 2), (3, 3)),
    Layer("c_b16_c32k64_127_k5_s3", (16, 32, 127, 127), 64, (5, 5), (3, 3), (2, 2)),
    Layer("c_b1_c24k40_1023x2047_k1", (1, 24, 1023, 2047), 40, (1, 1)),
    Layer("c_b8_c72k136_65_k3_s2_d4", (8, 72, 65, 65), 136, (3, 3), (2, 2), (4, 4), (4, 4)),
    Layer("c_b6_c33k65_33x129_k5x3_p4", (6, 33, 33, 129), 65, (5, 3), (1, 1), (4, 4)),
    Layer("c_b8_c90k60_29_k3_s1x3_g6", (8, 90, 29, 29), 60, (3, 3), (1, 3), (1, 1), groups=6),
)

SUITES = {"core": CORE, "depthwise": DEPTHWISE, "dense": DENSE}

# What is measured where nothing else is asked for.
DIRECTIONS = tuple(Direction)
PRECISIONS = (Precision.TF32, Precision.FLOAT32)
