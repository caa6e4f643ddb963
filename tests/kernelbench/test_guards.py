"""Margins of poison beside tensors: what is written there is found, on either side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convsmith.kernelbench.guards import MARGIN, GuardedAllocations, guarded

CPU = torch.device("cpu")


def write_beside(tensor: Tensor, elements: int) -> None:
    """Write one element at a distance from the first."""
    tensor.as_strided((1,), (1,), tensor.storage_offset() + elements).fill_(1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_guarded_tensor_is_the_same_tensor(layout: torch.memory_format) -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=layout)
    placed, block = guarded(x, "x")
    assert torch.equal(placed, x)
    assert placed.stride() == x.stride()
    assert placed.data_ptr() % 64 == block.memory.data_ptr() % 64
    placed.fill_(3)
    assert block.damage() == ""


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        (-1, "wrote 4 bytes before x, the nearest 1 bytes from its start"),
        (120, "wrote 4 bytes after x, the nearest 1 bytes from its end"),
        (122, "wrote 4 bytes after x, the nearest 9 bytes from its end"),
        (119 + MARGIN // 4, "wrote 4 bytes after x"),
        (-MARGIN // 4, "wrote 4 bytes before x"),
    ],
)
def test_damage(elements: int, words: str) -> None:
    placed, block = guarded(torch.randn(2, 3, 4, 5), "x")
    write_beside(placed, elements)
    assert words in block.damage()


def test_what_is_unwritten_is_nan_in_every_floating_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        placed, _ = guarded(torch.empty(7, dtype=dtype), "x", filled=False)
        assert placed.isnan().all()


def test_allocations_are_guarded() -> None:
    x = torch.randn(2, 3)
    with GuardedAllocations(CPU) as mode:
        empties = [
            torch.empty(2, 3),
            torch.empty((2, 3), dtype=torch.float16),
            torch.empty_like(x),
            x.new_empty(2, 3),
            torch.empty_strided((2, 3), (1, 2)),
        ]
        filled = [torch.zeros(4), torch.full((4,), 2.0), torch.zeros_like(x), x.new_zeros(3)]
        torch.empty(0)
    assert len(mode.blocks) == len(empties) + len(filled)
    assert all(tensor.isnan().all() for tensor in empties)
    assert [float(tensor.sum()) for tensor in filled] == [0, 8, 0, 0]
    assert empties[-1].stride() == (1, 2)
    assert all(block.damage() == "" for block in mode.blocks)
    write_beside(empties[0], 6)
    assert "a tensor of (2, 3) that it made" in mode.blocks[0].damage()


def test_results_have_gradients_as_usual() -> None:
    x = torch.randn(3, requires_grad=True)
    with GuardedAllocations(CPU):
        y = torch.empty_like(x).copy_(x * 2)
        y.backward(torch.ones(3))
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full((3,), 2.0))
