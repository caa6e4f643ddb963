"""``Conv2d``, ``ConvTranspose2d`` and the lazy ones: nn's, with ConvSmith's convolution in them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from convsmith.functional import conv2d, conv_transpose2d


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


class ConvTranspose2d(nn.ConvTranspose2d):
    """y = conv_transpose2d(x, weight) + bias, as ``torch.nn.ConvTranspose2d`` but for speed.

    Constructor, parameters, initialisation, state and errors are ``torch.nn.ConvTranspose2d``'s
    own, so a checkpoint of either loads into the other, and equal seeds give equal weights.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The module's result.

        Args:
            input: (N, in_channels, P, Q) or (in_channels, P, Q).
            output_size: (H, W) of the result, or its whole shape, in place of ``output_padding``.

        Raises:
            ValueError: a ``padding_mode`` other than "zeros", or a size that the result cannot
                have.
        """
        if self.padding_mode != "zeros":
            raise ValueError("Only `zeros` padding mode is supported for ConvTranspose2d")
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            2,
            self.dilation,  # type: ignore[arg-type]
        )
        return conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding,
            self.groups,
            self.dilation,
        )


class LazyConvTranspose2d(nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    """A ``ConvTranspose2d`` that takes ``in_channels`` from its first input, as nn's lazy one."""

    cls_to_become = ConvTranspose2d
