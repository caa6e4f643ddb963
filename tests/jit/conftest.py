"""A cache folder of its own for each test, the CUDA compiler, and child processes."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from child_process import Child, StartChild

from convsmith.errors import ToolchainError
from convsmith.jit import compile as jit_compile
from convsmith.jit import toolchain


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty kernel cache, with a blank in its path, that nothing is loaded from yet."""
    folder = tmp_path / "kernel cache"
    monkeypatch.setenv("CONVSMITH_CACHE", str(folder))
    monkeypatch.delenv("CONVSMITH_NO_COMPILE", raising=False)
    monkeypatch.setattr(jit_compile, "_loaded", {})
    return folder


@pytest.fixture(scope="session")
def cuda_compiler(tmp_path_factory: pytest.TempPathFactory) -> toolchain.Toolchain:
    """nvcc and all that load_inline needs, also where PyTorch is built without CUDA.

    load_inline links PyTorch's CUDA libraries, of which a kernel needs nothing; a build without
    CUDA lacks them, so empty ones take their place. And where PyTorch has not loaded the CUDA
    runtime into this process, this does.
    """
    try:
        tools = toolchain.find()
    except ToolchainError as error:
        pytest.skip(f"compiles with nvcc, which cannot be used here: {error}")
    if torch.version.cuda is None:
        stubs = tmp_path_factory.mktemp("stubs")
        for name in ("c10_cuda", "torch_cuda"):
            command = [
                "c++",
                "-shared",
                "-x",
                "c++",
                os.devnull,
                "-o",
                str(stubs / f"lib{name}.so"),
            ]
            subprocess.run(command, check=True)
        paths = [str(stubs), *filter(None, [os.environ.get("LIBRARY_PATH")])]
        os.environ["LIBRARY_PATH"] = os.pathsep.join(paths)
        runtime = next(tools.nvcc.home.glob("lib*/libcudart.so.*"))
        ctypes.CDLL(str(runtime), ctypes.RTLD_GLOBAL)
        # A child process finds it through this.
        os.environ["LD_LIBRARY_PATH"] = str(runtime.parent)
    return tools


@pytest.fixture
def start_child() -> Iterator[StartChild]:
    """Starts a `Child`, which ends with the test at the latest."""
    children: list[Child] = []

    def start(code: str, *arguments: object, **environment: str) -> Child:
        children.append(Child(code, *arguments, **environment))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()
