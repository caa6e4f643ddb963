"""Kernels compiled on all processors at once, before a GPU waits for them one by one."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial

import torch

from convsmith import jit
from convsmith.errors import ConvSmithError
from convsmith.jit import cache
from convsmith.kernels.source import KernelSource
from convsmith.planner import Plan, architecture_of

# Each holds a PyTorch and a compiler: half a GiB, or more.
_MOST_PROCESSES = 16


def compile_ahead(plans: Iterable[Plan], device: torch.device) -> None:
    """Bring the own kernels that ``plans`` run into the kernel cache.

    In processes of their own, because PyTorch's `load_inline` builds one kernel at a time in a
    process. Nothing is said of a kernel that does not compile: its first call says it, or compiles
    it where a process was killed.
    """
    sources = {
        plan.family.source(plan.spec, plan.configuration)
        for plan in plans
        if plan.family is not None
    }
    if len(sources) < 2 or cache.compiling_disabled():
        return
    processes = min(len(sources), len(os.sched_getaffinity(0)), _MOST_PROCESSES)
    # Not forked: a child of a process that has used CUDA inherits locks that nobody releases.
    context = multiprocessing.get_context("spawn")
    with suppress(BrokenProcessPool), ProcessPoolExecutor(processes, context) as pool:
        list(pool.map(partial(_compile, architecture=architecture_of(device)), sources))


def _compile(source: KernelSource, architecture: str) -> None:
    with suppress(ConvSmithError):
        jit.load(source, architecture)
