"""The CUDA text of a specialised kernel: a stub of constants with its headers inlined."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Template

_FOLDER = resources.files("convsmith.kernels")
_LOCAL_INCLUDE = re.compile(r'^#include "(?P<path>[^"]+)"\n', re.MULTILINE)
_ONCE = "#pragma once\n"

# The simulator's own header takes the CUDA runtime's place and is found on the include path.
_SURROUNDINGS = frozenset({"simulator.h"})


@dataclass(frozen=True)
class KernelSource:
    """One compilable kernel.

    Args:
        name: a C identifier that tells a reader what it is, such as ``direct_forward_float32``.
        cuda: self-contained CUDA C++ that defines ``convsmith_launch``.
    """

    name: str
    cuda: str


@cache
def render(family: str, name: str, constants: tuple[str, ...]) -> KernelSource:
    """The stub of ``family`` with its template arguments filled in and its headers inlined."""
    template = Template(_FOLDER.joinpath("stub.cu.in").read_text())
    stub = template.substitute(family=family, constants=", ".join(constants))
    return KernelSource(name, _inline(stub, set()))


def _inline(text: str, seen: set[str]) -> str:
    """``text`` with every local include replaced by the file's own text, once each."""

    def replace(match: re.Match[str]) -> str:
        path = match["path"]
        if path in _SURROUNDINGS:
            return match[0]
        if path in seen:
            return ""
        seen.add(path)
        return _inline(_FOLDER.joinpath(path).read_text().replace(_ONCE, ""), seen)

    return _LOCAL_INCLUDE.sub(replace, text)
