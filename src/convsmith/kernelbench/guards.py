"""Find stray writes, unwritten results and reads past an end, without a sanitizer.

Tensors are placed inside larger blocks whose bytes are all 0xFF: NaN in every floating dtype. A
write beside a tensor changes those bytes; a read beside it makes a NaN of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

MARGIN = 1 << 16  # bytes on each side, a multiple of every alignment
POISON = 0xFF

# What makes a tensor without contents, and with contents that nothing else holds.
EMPTY = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
FILLED = {
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    aten.full.default,
    aten.full_like.default,
    aten.new_full.default,
}


@dataclass(frozen=True)
class Block:
    """A tensor's memory with its margins.

    Attributes:
        memory: all of it, as bytes.
        size: bytes of the tensor between the margins.
        name: what the tensor is, for a reader.
    """

    memory: Tensor
    size: int
    name: str

    def damage(self) -> str:
        """What was written into the margins, in words; empty if nothing was."""
        for margin, where in (
            (self.memory[:MARGIN], "before"),
            (self.memory[MARGIN + self.size :], "after"),
        ):
            changed = (margin != POISON).nonzero()
            if len(changed):
                near = MARGIN - int(changed[-1]) if where == "before" else int(changed[0]) + 1
                return (
                    f"wrote {len(changed)} bytes {where} {self.name}, the nearest {near} bytes "
                    f"from its {'start' if where == 'before' else 'end'}"
                )
        return ""


def guarded(tensor: Tensor, name: str, *, filled: bool = True) -> tuple[Tensor, Block]:
    """A tensor like ``tensor`` between two margins, with its contents if ``filled``, else poison.

    ``tensor`` must not overlap itself; it keeps its strides.
    """
    size = tensor.element_size() * _extent(tensor)
    memory = torch.full((size + 2 * MARGIN,), POISON, dtype=torch.uint8, device=tensor.device)
    inside = memory[MARGIN : MARGIN + size].view(tensor.dtype)
    placed = inside.as_strided(tensor.shape, tensor.stride())
    if filled:
        placed.copy_(tensor)
    return placed, Block(memory, size, name)


class GuardedAllocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, tensors that are made on ``device`` lie between margins.

    It sees ``torch.empty`` and its like, called from Python or C++; memory that a solution takes
    elsewhere, by cudaMalloc for example, it does not see.

    Attributes:
        blocks: the memory of each such tensor, kept alive.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.blocks: list[Block] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in this mode, and importing Dynamo takes a second

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func not in EMPTY and func not in FILLED:
            return made
        if made.device.type != self.device.type or made.numel() == 0 or made.is_pinned():
            return made
        name = f"a tensor of {tuple(made.shape)} that it made"
        placed, block = guarded(made, name, filled=func in FILLED)
        self.blocks.append(block)
        return placed


def _extent(tensor: Tensor) -> int:
    """Elements from a tensor's first to one past its last in memory."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
