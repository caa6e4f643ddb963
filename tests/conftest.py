"""What every test shares: one kernel cache, fixed random numbers, GPU tests only on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings

from convsmith import choice, planner, roofline

ROOT = Path(__file__).parent.parent

# Hypothesis: the same examples on every run, and no limit that a busy machine could break.
settings.register_profile("convsmith", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("convsmith")


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled kernels in the checkout, away from the user's cache, for the next run too."""
    cache = ROOT / "build" / "test-cache"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.environ.setdefault("CONVSMITH_CACHE", str(cache))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests marked gpu where PyTorch sees none.

    Here and not by a mark on each, so that the summary has one line for all of them.
    """
    if "gpu" in item.keywords and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU, and PyTorch sees none")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Give every test the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """PyTorch reports one H200, of the compute capability in this list."""
    capability = [9, 0]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: tuple(capability))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(
            name="NVIDIA H200", multi_processor_count=132, major=9, minor=0
        ),
    )
    forget_plans()
    yield capability
    forget_plans()


def forget_plans() -> None:
    planner.plan_for.cache_clear()
    roofline.ceilings_of.cache_clear()
    choice._measured.clear()
