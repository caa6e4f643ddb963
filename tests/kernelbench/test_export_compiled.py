"""Exported files with a real compiler: what they give to load_inline compiles, and is kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from exported import PROBLEMS, convolutions, load, planned
from torch.utils import cpp_extension

LAYER = next(problem for problem in PROBLEMS if problem.stem == "layer")
# A kernel of each family that is for more than one architecture, and how many addresses it takes.
ADDRESSES = {"dense-grad_weight-float64": 5, "depthwise-forward-float32": 5}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The exported problem of a single layer, with a folder of its own for what it compiles."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return load(LAYER, tmp_path)


def compile_without_gpu(**arguments: Any) -> ModuleType:
    """load_inline's work by nvcc and g++ alone: a PyTorch without CUDA has nothing to link with."""
    folder = Path(arguments["build_directory"])
    (cpp,), (cuda,) = arguments["cpp_sources"], arguments["cuda_sources"]
    folder.joinpath("main.cpp").write_text(cpp)
    folder.joinpath("cuda.cu").write_text(cuda)
    include = subprocess.check_output(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('include'))"], text=True
    ).strip()
    name = arguments["name"]
    flags = [*arguments["extra_cuda_cflags"], "-gencode=arch=compute_80,code=sm_80"]
    command = ["nvcc", *flags, "-shared", "-Xcompiler=-fPIC", f"-I{include}"]
    command += [f"-DTORCH_EXTENSION_NAME={name}", "main.cpp", "cuda.cu", "-o", f"{name}.so"]
    subprocess.run(command, cwd=folder, check=True)
    return cpp_extension._import_module_from_library(name, str(folder), True)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc on the PATH to compile CUDA")
@pytest.mark.parametrize("convolution", ADDRESSES)
def test_compiles_and_is_loaded_again(
    convolution: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the flags it gives, for sm_90a and, as PyTorch may add, for a second architecture."""
    monkeypatch.setattr(cpp_extension, "load_inline", compile_without_gpu)
    family, arguments = planned(module, convolutions()[convolution], (9, 0))
    for _ in range(2):
        kernel = module.load_kernel(family, arguments, "90a")
        addresses = [0] * ADDRESSES[convolution]
        with pytest.raises(RuntimeError, match="the problem has another size"):
            kernel.launch(b"", 0, *addresses)
        module.load_kernel.cache_clear()
        monkeypatch.setattr(cpp_extension, "load_inline", None)  # the second finds the library
    folder = Path(kernel.__file__).parent
    assert [path.name for path in folder.iterdir()] == [f"{kernel.__name__}.so"]


class Called(Exception):
    """load_inline was called: its keyword arguments."""


def load_inline_of_pytorch_2_3(
    name, cpp_sources, cuda_sources=None, functions=None, extra_cflags=None,
    extra_cuda_cflags=None, extra_ldflags=None, extra_include_paths=None, build_directory=None,
    verbose=False, with_cuda=None, is_python_module=True, with_pytorch_error_handling=True,
    keep_intermediates=True, use_pch=False,
) -> None:  # fmt: skip
    raise Called(dict(locals()), sorted(str(p) for p in Path(build_directory).rglob("*.h")))


def load_inline_of_pytorch_2_8(name, cpp_sources, *, no_implicit_headers=False, **others) -> None:
    raise Called({**others, "name": name, "no_implicit_headers": no_implicit_headers}, [])


@pytest.mark.parametrize(
    "load_inline", [load_inline_of_pytorch_2_3, load_inline_of_pytorch_2_8], ids=["2.3", "2.8"]
)
def test_asks_each_pytorch_for_what_it_knows(
    load_inline: Callable, module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpp_extension, "load_inline", load_inline)
    calls = []
    for dtype, architecture in (("float32", "80"), ("float64", "80"), ("float64", "90")):
        family, arguments = planned(module, convolutions()[f"dense-forward-{dtype}"], (8, 0))
        with pytest.raises(Called) as called:
            module.load_kernel(family, arguments, architecture)
        calls.append(called.value.args)
    (arguments, headers), *_ = calls
    assert "-gencode=arch=compute_80,code=sm_80" in arguments["extra_cuda_cflags"]
    folder = Path(arguments["build_directory"])
    if load_inline is load_inline_of_pytorch_2_3:  # empty headers in place of PyTorch's
        assert arguments["extra_include_paths"] == [str(folder)]
        assert headers == [f"{folder}/torch/extension.h", f"{folder}/torch/types.h"]
    else:
        assert arguments["no_implicit_headers"] is True
    # Every kernel has a name and a folder of its own, of which nothing is left.
    assert len({arguments["name"] for arguments, _ in calls}) == 3
    assert len({arguments["build_directory"] for arguments, _ in calls}) == 3
    assert list((tmp_path / "extensions").iterdir()) == []
