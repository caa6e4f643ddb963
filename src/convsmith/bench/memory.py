"""Extra memory of a call: bytes at its peak beyond what was allocated before and its own result.

cuDNN's workspace counts: PyTorch takes it from its own allocator.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def extra_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The extra bytes of one ``call`` on ``device``; warm it up first, or tuning counts as well."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    torch.cuda.synchronize(device)
    extra = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    del result  # it had to live until here: its memory is not extra
    return extra
