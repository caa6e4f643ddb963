"""What is compiled ahead: every kernel of some plans once, and what fails is left to its call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convsmith import launch, planner
from convsmith.bench.suites import Layer, Layout
from convsmith.errors import CompilationError
from convsmith.jit import cache
from convsmith.jit import compile as jit_compile
from convsmith.kernels.source import KernelSource
from convsmith.launch import compile_ahead
from convsmith.planner import Plan
from convsmith.spec import Direction, Precision

CPU = torch.device("cpu")
LAYERS = [Layer("any", (2, 8, 9, size), 8, (3, 3)) for size in (8, 9)]


def plans(*directions: Direction, kernel: str = "direct") -> list[Plan]:
    """Of two layers that share their kernels."""
    return [
        planner.plan_for(
            layer.spec(direction, Precision.FLOAT32, Layout.NCHW), CPU, kernel, simulate=True
        )
        for layer in LAYERS
        for direction in directions
    ]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Names and architectures of what is compiled."""
    names: list[tuple[str, str]] = []

    def load(source: KernelSource, architecture: str) -> None:
        names.append((source.name, architecture))
        if "grad_input" in source.name:
            raise CompilationError("refused", log="error: no", command="nvcc")

    monkeypatch.setattr(launch, "architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(jit_compile, "load", load)
    monkeypatch.delenv("CONVSMITH_NO_COMPILE", raising=False)
    return names


def test_each_kernel_is_compiled_once_and_a_failure_stops_nothing(
    compiled: list[tuple[str, str]],
) -> None:
    compile_ahead(plans(*Direction), CPU)
    assert sorted(compiled) == [
        (f"direct_{name}_float32_8", "sm_90") for name in ("forward", "grad_input", "grad_weight")
    ]


def test_nothing_is_done_without_need_or_leave(
    compiled: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_ahead(plans(*Direction, kernel="torch"), CPU)
    compile_ahead(plans(Direction.FORWARD), CPU)  # a single one compiles as quickly at its call
    monkeypatch.setenv("CONVSMITH_NO_COMPILE", "1")
    compile_ahead(plans(*Direction), CPU)
    assert compiled == []


@pytest.mark.gpu
def test_kernels_are_in_the_cache_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("CONVSMITH_CACHE", str(tmp_path))
    monkeypatch.setattr(jit_compile, "_loaded", {})  # by another test
    compile_ahead(plans(*Direction), torch.device("cuda", torch.cuda.current_device()))
    assert len(cache.list_entries("direct_")) == 3
