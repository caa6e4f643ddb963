"""How the implicit_gemm family sums, to err no more than cuDNN does.

In the float32 class that depends on which algorithm cuDNN takes, as it was seen to do on an H100.
"""

from __future__ import annotations

from convsmith.kernels.implicit_gemm_cut import Sums
from convsmith.kernels.implicit_gemm_forward import Forward, forwards_of
from convsmith.spec import ConvSpec, Direction, Precision

MOST_STAGE_TAPS = 4  # of a stage of weights
# Where cuDNN errs little in the float32 class, and where it does not, as measured.
FEW_TERMS = 64  # of a forward of one tap
FEW_TERMS_OF_TAPS = 100  # of a forward of several
LONG_SUM = 1536  # terms of a forward
WINOGRAD_PLANE = 32  # rows and columns of a forward's output, at most
WINOGRAD_TERMS = 512  # of a forward, at least
PLAIN_PLANE = 65  # rows and columns of an input gradient, at least
PLAIN_TERMS = 256  # of an input gradient, at least
MANY_TERMS = 3000  # of an input gradient
SMALL_FILTER = 3  # rows and columns, at most: of larger ones cuDNN takes FFT's
SMALL_PLANE = 20  # rows and columns of x, whose gradient it is, at most
FEW_CHANNELS = 16  # of a group of x, at most
FEW_PLAIN_TERMS = 144  # of a forward
SHORT_SUM = 512  # terms
# Of a weight gradient, in all images. On positive operands the tensor cores' sums of 32 pixels
# are up to 0.7e-7 too small, those of 16 up to 0.45e-7. Of 1024 pixels cuDNN errs 0.64e-7, of
# 1568 0.87e-7, in rms, and of 2048 or more it was never seen to err less than we do.
FEW_PIXELS = 2048
# Where gradients of groups err more than cuDNN's.
FEW_GROUP_TERMS = 64  # of an input gradient
FEW_GROUP_CHANNELS = 16  # of a weight gradient


def sums_of(forward: Forward, spec: ConvSpec) -> Sums:
    """How ``forward``, which computes ``spec``, is summed, to err no more than cuDNN does.

    In the float32 class that depends on how much this is: on which algorithm it takes.
    """
    if spec.precision is not Precision.FLOAT32:
        return Sums(1, 1, False, MOST_STAGE_TAPS)
    terms = forward.terms
    if cudnn_errs_least(forward, spec):
        if terms < SHORT_SUM:
            return Sums(5, 1, True, 1)
        is_long = spec.direction is Direction.FORWARD and terms >= LONG_SUM
        sums_of_stages = is_long and max(forward.kernel) <= SMALL_FILTER
        return Sums(5, 3, True, 3) if sums_of_stages else Sums(5, 1, True, MOST_STAGE_TAPS)
    if cudnn_errs_most(forward, spec):
        return Sums(4, 2, False, 3) if terms < FEW_PLAIN_TERMS else Sums(3, 3, False, 3)
    return Sums(3, 3, True, 3)


def pixels_of_sums(spec: ConvSpec) -> int:
    """Pixels of ``spec``, a weight gradient, that tensor cores add up; 0 if as many as may be.

    Of split operands, the sums of so many are added to the others with rounding.
    """
    if spec.precision is not Precision.FLOAT32:
        return 0
    batch, _, height, width = spec.output_shape
    return 16 if batch * height * width < FEW_PIXELS else 32


def cudnn_errs_least(forward: Forward, spec: ConvSpec) -> bool:
    """Whether cuDNN's largest error is little more than a rounding of the largest result.

    Then operands need all of their bits. It is so where sums are of few terms, and where cuDNN
    takes Winograd's, FFT's or other algorithms with short sums.
    """
    if spec.direction is Direction.FORWARD:
        few = FEW_TERMS if forward.kernel == (1, 1) else FEW_TERMS_OF_TAPS
        return forward.terms < few or takes_winograd(forward, spec)
    is_long = forward.phases is None and forward.terms >= MANY_TERMS
    is_long = is_long and max(forward.kernel) <= SMALL_FILTER
    is_dilated = spec.stride == (1, 1) and spec.dilation != (1, 1)
    if is_long or is_dilated or forward.kernel == (1, 1) or is_plain(forward, spec):
        return False
    is_small = max(spec.input_shape[2:]) <= SMALL_PLANE
    has_few_channels = spec.weight_shape[1] <= FEW_CHANNELS and max(spec.stride) <= 2
    return forward.terms < SHORT_SUM or not (is_small or has_few_channels)


def cudnn_errs_most(forward: Forward, spec: ConvSpec) -> bool:
    """Whether cuDNN adds up a long sum's terms one by one."""
    if spec.direction is Direction.FORWARD:
        return forward.terms < LONG_SUM or max(spec.output_size) > WINOGRAD_PLANE
    return is_plain(forward, spec)


def takes_winograd(forward: Forward, spec: ConvSpec) -> bool:
    """Whether cuDNN does for ``forward``, or takes another such algorithm."""
    return (
        spec.groups == 1
        and forward.stride == (1, 1)
        and min(forward.kernel) > 1
        and max(forward.out_size) <= WINOGRAD_PLANE
        and forward.terms >= WINOGRAD_TERMS
    )


def is_plain(forward: Forward, spec: ConvSpec) -> bool:
    """Whether cuDNN computes an input gradient as a matrix product, with long sums."""
    if forward.terms < PLAIN_TERMS or spec.groups > 1 or forward.phases is not None:
        return False
    is_large = min(forward.out_size) >= PLAIN_PLANE and forward.filters >= forward.channels
    is_large = is_large and forward.kernel == (3, 3) and spec.dilation == (1, 1)
    return forward.kernel == (1, 1) or is_large


def errs_more_than_cudnn(spec: ConvSpec) -> bool:
    """Whether its errors are larger than cuDNN's, as measured, on operands in [0, 1).

    In an input gradient of 30 terms 0.52e-7 in rms, and cuDNN's is 0.46e-7. In the weight
    gradient of the same groups, of 15 channels, 0.77e-7, and cuDNN's is 0.52e-7.
    """
    if spec.precision is not Precision.FLOAT32 or spec.groups == 1:
        return False
    if spec.direction is Direction.GRAD_WEIGHT:
        return spec.weight_shape[1] < FEW_GROUP_CHANNELS
    if spec.direction is Direction.FORWARD:
        return False
    return forwards_of(spec)[0].terms < FEW_GROUP_TERMS
