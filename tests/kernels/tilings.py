"""Which tiles tests of the implicit_gemm family get."""

from collections.abc import Callable

import pytest

from convsmith.kernels import implicit_gemm_tiles
from convsmith.kernels.implicit_gemm_cut import Configuration, Halves
from convsmith.spec import ConvSpec


def prefer(monkeypatch: pytest.MonkeyPatch, wanted: Callable[[Halves], bool]) -> None:
    """Leaves an implicit_gemm's tiles no other shapes, where it may have one that is wanted."""
    fitting_tilings = implicit_gemm_tiles.fitting_tilings

    def preferred(spec: ConvSpec, way: int, multiprocessors: int) -> list[Configuration]:
        fitting = fitting_tilings(spec, way, multiprocessors)
        return [one for one in fitting if wanted(one.shape)] or fitting

    monkeypatch.setattr(implicit_gemm_tiles, "fitting_tilings", preferred)
