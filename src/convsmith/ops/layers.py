"""Whether any of the layers that PyTorch puts over a computation has a part in a call.

Where none has, the way through its dispatcher costs more time than many a small convolution, and
changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_Key = torch._C.DispatchKey


def _bits(*keys: torch._C.DispatchKey) -> int:
    keyset = torch._C.DispatchKeySet(keys[0])
    for key in keys[1:]:
        keyset |= torch._C.DispatchKeySet(key)
    return keyset.raw_repr()


# The dispatch keys of plain memory, outside and inside inference mode. Whatever else a tensor can
# be (sparse, nested, a view to be negated, a subclass, wrapped by a transform) adds a key.
_PLAIN = frozenset(
    {
        _bits(_Key.CUDA, _Key.ADInplaceOrView, _Key.AutogradCUDA, _Key.AutocastCUDA),
        _bits(_Key.CUDA, _Key.AutocastCUDA),
        _bits(_Key.CPU, _Key.ADInplaceOrView, _Key.AutogradCPU, _Key.AutocastCPU),
        _bits(_Key.CPU, _Key.AutocastCPU),
    }
)
# Likewise the layers that every call passes. A transform, a mode or a tracer adds one.
_USUAL = frozenset({_bits(_Key.BackendSelect, _Key.ADInplaceOrView), _bits(_Key.BackendSelect)})


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is memory and no more, with sizes that are numbers."""
    return torch._C._dispatch_keys(tensor).raw_repr() in _PLAIN


def nobody_looks_on() -> bool:
    """Whether no layer but autograd and autocast would do or note anything, tensors being plain."""
    return (
        torch._C._dispatch_tls_local_include_set().raw_repr() in _USUAL
        and forward_ad._current_level < 0
        and not torch._C._autograd._profiler_enabled()
    )
