"""``convsmith.Conv2d`` and ``convsmith.LazyConv2d``: nn's, with ConvSmith's convolution in them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from convsmith.functional import conv2d


class Conv2d(nn.Conv2d):
    """y = conv2d(x, weight) + bias, as ``torch.nn.Conv2d`` has it in all but speed.

    Constructor, parameters, initialisation, state and errors are ``torch.nn.Conv2d``'s own, so a
    checkpoint of either loads into the other, and equal seeds give equal weights.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            padded = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)
        return conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class LazyConv2d(nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    """A ``Conv2d`` that takes ``in_channels`` from its first input, as ``torch.nn.LazyConv2d``."""

    cls_to_become = Conv2d
