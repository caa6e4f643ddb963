"""How the implicit_gemm family sums in the float32 class: with errors like cuDNN's best."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convolutions import LARGEST_ERROR, PLAIN, Case, largest_error
from torch import Tensor

import convsmith
from convsmith import execute
from convsmith.bench.accuracy import Distribution
from convsmith.errors import KernelUnavailableError
from convsmith.kernels import implicit_gemm
from convsmith.kernels.implicit_gemm_accuracy import sums_of
from convsmith.kernels.implicit_gemm_forward import forwards_of
from convsmith.spec import Direction

FAMILY = "implicit_gemm"
POINTWISE = replace(PLAIN, kernel_size=(1, 1), padding=(0, 0), has_bias=False)
SQUARE = replace(PLAIN, kernel_size=(3, 3), padding=(1, 1), has_bias=False)
SMALL_GROUPS = replace(PLAIN, groups=3, group_channels=9, group_filters=9, kernel_size=(2, 2))

# What is summed with all bits of the operands: 16 terms at once, or 48; and with 22 of them.
EXACT = {
    "16-terms": (Direction.FORWARD, replace(POINTWISE, group_channels=16, size=(9, 30))),
    "48-terms": (Direction.FORWARD, replace(POINTWISE, group_channels=48, size=(9, 30))),
    "few-terms-of-taps": (Direction.FORWARD, replace(SQUARE, group_channels=8, size=(9, 30))),
    "planes-for-winograd": (Direction.FORWARD, replace(SQUARE, group_channels=64, size=(12, 18))),
    "gradient": (
        Direction.GRAD_INPUT,
        replace(SQUARE, group_channels=20, group_filters=70, size=(12, 22)),
    ),
    "gradient-of-a-stride": (
        Direction.GRAD_INPUT,
        replace(SQUARE, group_filters=70, size=(23, 18), stride=(2, 2)),
    ),
}
# Where an operand's second parts meet each other: in all of these, and where products are four.
MANY_PRODUCTS = {
    **{name: EXACT[name] for name in EXACT if name != "gradient-of-a-stride"},
    "four-products": (Direction.FORWARD, replace(POINTWISE, group_channels=80, size=(9, 30))),
    "three-channels": (Direction.FORWARD, replace(SQUARE, group_channels=3, size=(9, 30))),
    "flat": (Direction.FORWARD, replace(SQUARE, group_channels=8, batch=4, size=(13, 13))),
    "rows-that-share-sectors": (
        Direction.FORWARD,
        replace(SQUARE, group_channels=8, batch=1, size=(6, 301), padding=(0, 0)),
    ),
    "copied-rows": (Direction.FORWARD, replace(SQUARE, group_channels=8, batch=1, size=(5, 264))),
}
LONG_EXACT = {
    "planes-for-winograd": (Direction.FORWARD, replace(SQUARE, group_channels=176, size=(12, 18))),
}
COMPENSATED = {
    "long-gradient": (
        Direction.GRAD_INPUT,
        replace(SQUARE, group_channels=20, group_filters=340, batch=1, size=(9, 22)),
    ),
    "pointwise-gradient": (Direction.GRAD_INPUT, replace(POINTWISE, group_filters=130)),
    "dilated-gradient": (
        Direction.GRAD_INPUT,
        replace(SQUARE, group_channels=20, group_filters=70, dilation=(2, 2), padding=(2, 2)),
    ),
    "gradient-of-small-planes": (
        Direction.GRAD_INPUT,
        replace(SQUARE, group_channels=20, group_filters=70, size=(12, 18)),
    ),
    "gradient-of-few-channels": (
        Direction.GRAD_INPUT,
        replace(SQUARE, group_filters=70, size=(12, 22)),
    ),
}


def drawn(case: Case, direction: Direction, values: Distribution) -> tuple[Tensor, Tensor, Tensor]:
    """x, w and dy, the same ones each time."""
    spec = case.specs()[direction]
    torch.manual_seed(1)
    cpu = torch.device("cpu")
    shapes = (spec.input_shape, spec.weight_shape, spec.output_shape)
    x, w, dy = (values.draw(shape, torch.float32, cpu) for shape in shapes)
    return x, w, dy


def errors(
    case: Case, direction: Direction, values: Distribution, device: str
) -> tuple[float, float]:
    """In rms, and the largest one over the largest result."""
    x, w, dy = (tensor.to(device) for tensor in drawn(case, direction, values))
    ours, exact = computed(case, direction, x, w, dy)
    rms = (ours.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    return float(rms), largest_error(ours, exact)


def computed(
    case: Case, direction: Direction, x: Tensor, w: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor]:
    """By the kernel, and in float64."""
    if direction is Direction.FORWARD:
        ours = convsmith.conv2d(x, w, None, *case.geometry)
        return ours, torch.conv2d(x.double(), w.double(), None, *case.geometry)
    ours = execute.input_gradient(dy, w, x, *case.geometry)
    exact = torch.nn.grad.conv2d_input(x.shape, w.double(), dy.double(), *case.geometry)
    return ours, exact


@pytest.fixture
def _float32_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.usefixtures("_float32_class")
@pytest.mark.parametrize("values", Distribution)
@pytest.mark.parametrize("name", EXACT)
def test_operands_have_all_of_their_bits(name: str, values: Distribution, device: str) -> None:
    """Where cuDNN's errors are 0.6e-7 in rms or more, and its largest one 1.4e-7 or more.

    With 22 bits an operand they are 1.0e-7 in rms on normal operands, and its largest one up to
    2.5e-7 on operands of a wide range.
    """
    direction, case = EXACT[name]
    rms, largest = errors(case, direction, values, device)
    assert rms < (6e-8 if values is Distribution.RAND else 7.5e-8)
    assert largest < 1.7e-7


@pytest.mark.usefixtures("_float32_class")
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("name", MANY_PRODUCTS)
def test_infinity_stays_infinity_in_parts(name: str, value: float, device: str) -> None:
    """In the last rows of x, and in a weight, which padding meets, too; or in those of dy."""
    direction, case = MANY_PRODUCTS[name]
    x, w, dy = (tensor.to(device) for tensor in drawn(case, direction, Distribution.RANDN))
    moved = x if direction is Direction.FORWARD else dy
    moved[-1, 1 % moved.shape[1], -3:, ::7] = value
    if direction is Direction.FORWARD:
        w[2, 0, 0, 0] = value
    ours, exact = computed(case, direction, x, w, dy)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-4, equal_nan=True)


@pytest.mark.usefixtures("_float32_class")
@pytest.mark.parametrize("values", Distribution)
@pytest.mark.parametrize("name", [*LONG_EXACT, *COMPENSATED])
def test_long_sums_err_like_short_ones(name: str, values: Distribution, device: str) -> None:
    """By no more than their operands do: not by what tensor cores cut off, nor by roundings.

    On positive operands, what is cut off is 1.3e-7 of a sum; rounded after each stage of weights,
    sums err by 1.5e-7 in rms.
    """
    has_all_bits = name in LONG_EXACT
    direction, case = (LONG_EXACT if has_all_bits else COMPENSATED)[name]
    rms, largest = errors(case, direction, values, device)
    most = 1.15e-7 if has_all_bits else 1.4e-7
    assert rms < (6e-8 if values is Distribution.RAND else most)
    assert largest < (2.2e-7 if has_all_bits else 3e-7)


@pytest.mark.usefixtures("_float32_class")
@pytest.mark.parametrize(
    "kind", [EXACT, LONG_EXACT, COMPENSATED], ids=["exact", "long-exact", "compensated"]
)
def test_small_integers_stay_integers(kind: dict[str, tuple[Direction, Case]], device: str) -> None:
    """Nothing is cut off of their sums, so that there is nothing to make good."""
    for direction, case in kind.values():
        x, w, dy = (tensor.to(device) for tensor in drawn(case, direction, Distribution.RANDN))
        x, w, dy = ((4 * tensor).round() for tensor in (x, w, dy))
        ours, exact = computed(case, direction, x, w, dy)
        assert torch.equal(ours.double(), exact), (direction, case)


@pytest.mark.usefixtures("_float32_class")
def test_what_a_float32_convolution_is_summed_like() -> None:
    """By how much cuDNN errs."""
    large = replace(SQUARE, group_channels=64, group_filters=64, size=(80, 90))
    few_terms = replace(POINTWISE, group_channels=80, size=(80, 90))
    expected = {
        (3, 3, True): list(COMPENSATED.values()),
        (5, 1, True): list(EXACT.values()),
        (5, 3, True): list(LONG_EXACT.values()),
        (3, 3, False): [(Direction.FORWARD, large), (Direction.GRAD_INPUT, large)],
        (4, 2, False): [(Direction.FORWARD, few_terms)],
    }
    for how, cases in expected.items():
        for direction, case in cases:
            spec = case.specs()[direction]
            sums = sums_of(forwards_of(spec)[0], spec)
            assert (sums.products, sums.most_terms, sums.compensates) == how, (direction, case)


@pytest.mark.parametrize("direction", [Direction.GRAD_INPUT, Direction.GRAD_WEIGHT])
def test_gradients_of_small_groups_err_too_much_in_the_float32_class(
    direction: Direction, precision: str
) -> None:
    obstacle = implicit_gemm.obstacle(SMALL_GROUPS.specs()[direction])
    if precision == "tf32":
        assert obstacle is None
    else:
        assert obstacle is not None
        assert "gradients of small groups err more" in obstacle


@pytest.mark.usefixtures("_float32_class")
def test_an_input_gradient_of_small_groups_names_why_it_cannot_be_had(device: str) -> None:
    geometry = SMALL_GROUPS.geometry
    x, w, _ = SMALL_GROUPS.tensors(device)
    dy = SMALL_GROUPS.upstream(torch.conv2d(x, w, None, *geometry))
    with pytest.raises(KernelUnavailableError, match="gradients of small groups err more"):
        execute.input_gradient(dy, w, x, *geometry)


@pytest.mark.parametrize("ratio", [1e-35, 1e-20, 1e20, 1e35], ids=str)
def test_channels_of_magnitudes_far_apart(ratio: float, device: str, precision: str) -> None:
    """The sums of a tile change with its patches' scale, and overflowed where it rose by 2**127."""
    case = replace(PLAIN, group_channels=40, has_bias=False)
    x, w, _ = case.tensors(device)
    x[:, :16] *= ratio**0.5
    x[:, 16:] /= ratio**0.5
    y = convsmith.conv2d(x, w, None, *case.geometry)
    exact = torch.conv2d(x.double(), w.double(), None, *case.geometry)
    assert largest_error(y, exact) < LARGEST_ERROR[precision]


def test_a_small_image_after_a_large_one(device: str, precision: str) -> None:
    """Its first channels are zeros, which have no scale: what follows them may rise by any."""
    case = replace(PLAIN, batch=2, group_channels=40, group_filters=70, size=(60, 16))
    x, w, _ = case.tensors(device)
    x[0] *= 1e17
    x[1] *= 1e-17
    x[1, :16] = 0
    y = convsmith.conv2d(x, w, None, *case.geometry)
    exact = torch.conv2d(x.double(), w.double(), None, *case.geometry)
    beyond = slice(40, None)  # the rows that share a tile with the first image, and its scale
    assert largest_error(y[1, :, beyond], exact[1, :, beyond]) < LARGEST_ERROR[precision]
    assert largest_error(y[0], exact[0]) < LARGEST_ERROR[precision]
