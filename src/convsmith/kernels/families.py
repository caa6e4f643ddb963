"""The kernel families there are, the most specialised first."""

from __future__ import annotations

from convsmith.kernels import depthwise, direct, implicit_gemm
from convsmith.kernels.family import Family

FAMILIES: dict[str, Family] = {family.NAME: family for family in (depthwise, implicit_gemm, direct)}
