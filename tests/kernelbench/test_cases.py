"""Inputs written as lines of Python: the line makes the input, in the layout it says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from convsmith.kernelbench.cases import Layout, Template, Values, make_case

CPU = torch.device("cpu")
SHAPE = (3, 4, 5, 7)
IMAGE = Template.of(torch.empty(8, 4, 32, 32, device="meta"))


def only_input(**options) -> Tensor:
    (x,) = make_case([IMAGE], [SHAPE], CPU, seed=7, **options).inputs()
    return x


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("values", Values)
def test_the_printed_line_makes_the_input(values: Values, layout: Layout) -> None:
    case = make_case([IMAGE], [SHAPE], CPU, seed=7, values=values, layout=layout)
    scope = {"torch": torch}
    exec(str(case), scope)
    (printed,), (made,) = scope["inputs"], case.inputs()
    assert made.shape == SHAPE
    assert made.dtype is torch.float32
    assert printed.stride() == made.stride()
    assert torch.equal(printed, made)


def test_layouts_are_what_their_names_say() -> None:
    assert only_input(layout=Layout.CONTIGUOUS).is_contiguous()
    assert only_input(layout=Layout.EVERY_SECOND_COLUMN).stride() == (280, 70, 14, 2)
    assert only_input(layout=Layout.TRANSPOSED).stride() == (140, 35, 1, 5)
    assert only_input(layout=Layout.EXPANDED).stride() == (0, 35, 7, 1)
    channels_last = only_input(layout=Layout.CHANNELS_LAST)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    misaligned = only_input(layout=Layout.MISALIGNED)
    assert misaligned.is_contiguous()
    assert misaligned.data_ptr() % 16 == 4


def test_values_are_what_their_names_say() -> None:
    assert only_input(values=Values.RAND).min() >= 0
    assert only_input(values=Values.NEGATIVE).max() <= 0
    assert not only_input(values=Values.ZEROS).any()
    assert only_input(values=Values.RANDN).min() < 0
    wide = only_input(values=Values.WIDE).abs()
    assert wide.max() / wide.min() > 1e4


def test_special_values_are_in_three_items_and_not_in_the_fourth() -> None:
    (x,) = make_case([IMAGE], [(4, 4, 5, 7)], CPU, seed=7, special=True).inputs()
    assert [int((~item.isfinite()).sum()) for item in x] == [1, 1, 1, 0]
    assert x[0].isnan().any()
    assert x[1].max() == math.inf
    assert x[2].min() == -math.inf


def test_arguments_of_every_kind() -> None:
    values = [torch.empty(2, 3, dtype=torch.float16), 0.5, torch.zeros(3, dtype=torch.int64), "x"]
    templates = [Template.of(value) for value in values]
    case = make_case(
        templates, [(2, 3), None, (3,), None], CPU, seed=1, layout=Layout.CHANNELS_LAST
    )
    half, number, integers, text = case.inputs()
    assert (half.dtype, half.shape) == (torch.float16, (2, 3))
    assert (number, text) == (0.5, "x")
    assert torch.equal(integers, torch.zeros(3, dtype=torch.int64))


def test_tensors_are_drawn_on_the_cpu_and_moved() -> None:
    """So that the line gives the same numbers on every machine."""
    gpu = torch.device("cuda")
    case = make_case([IMAGE], [SHAPE], gpu, seed=7, layout=Layout.EVERY_SECOND_COLUMN)
    assert str(case) == (
        "torch.manual_seed(7); inputs = [torch.randn(3, 4, 5, 14).cuda()[..., ::2]]"
    )
