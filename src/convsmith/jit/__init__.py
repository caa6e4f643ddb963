"""From the text of a kernel to a function that launches it."""

from convsmith.jit.compile import load, load_all

__all__ = ["load", "load_all"]
