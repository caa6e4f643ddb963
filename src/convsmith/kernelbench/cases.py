"""The arguments of one call of ``forward``, each written as the line of Python that makes it.

A case is evaluated from the very text that is printed when it fails, so the text recreates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Template:
    """What an argument of ``forward`` looks like in the problem's own inputs.

    Attributes:
        shape, dtype: of a tensor; the shape of any other argument is None.
        constant: the argument itself, where it is no tensor.
    """

    shape: Shape | None
    dtype: torch.dtype | None
    constant: Any = None

    @classmethod
    def of(cls, value: Any) -> Template:
        """The template of one argument, which may be a tensor without contents."""
        if isinstance(value, Tensor):
            return cls(tuple(value.shape), value.dtype)
        return cls(None, None, value)


class Values(str, Enum):
    """Where random numbers come from; each is an expression of a shape."""

    RAND = "torch.rand({shape})"
    RANDN = "torch.randn({shape})"
    WIDE = "(torch.randn({shape}) * 10 ** torch.empty({shape}).uniform_(-3, 3))"
    NEGATIVE = "(-torch.rand({shape}))"
    ZEROS = "torch.zeros({shape})"


class Layout(str, Enum):
    """How a tensor lies in memory; each is an expression of a contiguous tensor."""

    CONTIGUOUS = "{draw}"
    EVERY_SECOND_COLUMN = "{draw}[..., ::2]"
    TRANSPOSED = "{draw}.transpose(-1, -2)"
    EXPANDED = "{draw}.expand({shape})"
    MISALIGNED = "{draw}[1:].view({shape})"
    CHANNELS_LAST = "{draw}.to(memory_format=torch.channels_last)"


@dataclass(frozen=True)
class Case:
    """Arguments of ``forward``.

    Attributes:
        seed: of PyTorch's generator, from which the arguments are drawn in their order.
        expressions: a line of Python for each argument.
        constants: the arguments that are no tensors, by their place.
    """

    seed: int
    expressions: tuple[str, ...]
    constants: dict[int, Any]

    def __str__(self) -> str:
        return f"torch.manual_seed({self.seed}); inputs = [{', '.join(self.expressions)}]"

    def inputs(self) -> list[Any]:
        """Evaluate the expressions."""
        torch.manual_seed(self.seed)
        return [
            self.constants[place] if place in self.constants else eval(text, {"torch": torch})
            for place, text in enumerate(self.expressions)
        ]


def make_case(
    templates: Sequence[Template],
    shapes: Sequence[Shape | None],
    device: torch.device,
    *,
    seed: int,
    values: Values = Values.RANDN,
    layout: Layout = Layout.CONTIGUOUS,
    special: bool = False,
) -> Case:
    """A case with the templates' arguments in other shapes.

    Args:
        templates: the arguments.
        shapes: of each tensor; None for an argument that is none.
        device: where tensors are moved after they were drawn on the CPU.
        seed: as in `Case`.
        values, layout: of every floating-point tensor; other tensors are zero and contiguous.
        special: put one NaN, inf and -inf into the first three items of each batch.
    """
    expressions, constants = [], {}
    for place, (template, shape) in enumerate(zip(templates, shapes, strict=True)):
        if shape is None:
            constants[place] = template.constant
            expressions.append(repr(template.constant))
            continue
        assert template.dtype is not None
        if template.dtype.is_floating_point:
            fitting = layout if _fits(layout, shape) else Layout.CONTIGUOUS
            expressions.append(_tensor(shape, template.dtype, device, values, fitting, special))
        else:
            zeros = f"torch.zeros({_text(shape)}, dtype={template.dtype})"
            expressions.append(zeros + _move(torch.float32, device))  # the dtype is in ``zeros``
    return Case(seed, tuple(expressions), constants)


def _tensor(
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    values: Values,
    layout: Layout,
    special: bool,
) -> str:
    drawn = _drawn_shape(shape, layout)
    draw = values.value.format(shape=_text(drawn))
    if special:
        draw += _specials(drawn)
    return layout.value.format(draw=draw + _move(dtype, device), shape=_text(shape))


def _fits(layout: Layout, shape: Shape) -> bool:
    """Whether a tensor of ``shape`` can lie so; channels last is a layout of four axes."""
    axes = {Layout.CONTIGUOUS: 0, Layout.MISALIGNED: 0, Layout.TRANSPOSED: 2}.get(layout, 1)
    return len(shape) == 4 if layout is Layout.CHANNELS_LAST else len(shape) >= axes


def _drawn_shape(shape: Shape, layout: Layout) -> Shape:
    """The shape of the contiguous tensor that ``layout`` makes one of ``shape`` from."""
    if layout is Layout.EVERY_SECOND_COLUMN:
        return (*shape[:-1], 2 * shape[-1])
    if layout is Layout.TRANSPOSED:
        return (*shape[:-2], shape[-1], shape[-2])
    if layout is Layout.EXPANDED:
        return (1, *shape[1:])
    if layout is Layout.MISALIGNED:
        return (torch.Size(shape).numel() + 1,)
    return shape


def _specials(shape: Shape) -> str:
    """Put NaN, inf and -inf a third into the items 0, 1 and 2."""
    item = torch.Size(shape[1:]).numel()
    places = [index * item + item // 3 for index in range(3)]
    return f".put_(torch.tensor({places}), torch.tensor([torch.nan, torch.inf, -torch.inf]))"


def _move(dtype: torch.dtype, device: torch.device) -> str:
    """What turns a float32 tensor on the CPU into one of ``dtype`` on ``device``."""
    converted = "" if dtype is torch.float32 else f".to({dtype})"
    return converted + (".cuda()" if device.type == "cuda" else "")


def _text(shape: Shape) -> str:
    return ", ".join(map(str, shape))
