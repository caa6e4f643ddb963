"""From the text of a kernel to a function that launches it."""

from convsmith.jit.compile import load

__all__ = ["load"]
