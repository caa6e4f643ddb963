"""What ConvSmith finds on this machine, and what to do about what it does not.

Nothing is compiled or written, and nothing happens at import.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from convsmith.errors import ConvSmithError
from convsmith.jit import cache, toolchain

OLDEST_TORCH = (2, 8)
OLDEST_CAPABILITY = (7, 0)

_LITTLE_SPACE_BYTES = 100 << 20
_GET_PYTORCH = "install a PyTorch for CUDA: https://pytorch.org/get-started/locally"
_NOT_NEEDED = "PyTorch's own convolution runs; kernels run in the simulator (convsmith demo)"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: what was looked at.
        state: "ok"; "warning", where ConvSmith's kernels still run; "missing", where they cannot.
        detail: what was found.
        remedy: what to do about it; empty for "ok".
    """

    topic: str
    state: Literal["ok", "warning", "missing"]
    detail: str
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Everything a kernel needs, in the order in which it is needed."""
    return [
        _pytorch(),
        _driver(),
        *_gpus(),
        _explained("nvcc", _nvcc),
        _explained("C++ compiler", lambda: toolchain.find_host_compiler().version),
        _python_headers(),
        _explained("ninja", lambda: str(toolchain.find_ninja())),
        _cache(),
        _compiling(),
    ]


def _explained(topic: str, look: Callable[[], str]) -> Finding:
    """What ``look`` returns, or what its ConvSmithError says was wrong and what to do."""
    try:
        return Finding(topic, "ok", look())
    except ConvSmithError as error:
        detail, _, remedy = str(error).partition("\nRemedy: ")
        return Finding(topic, "missing", detail, remedy)


def _pytorch() -> Finding:
    detail = f"{torch.__version__}, CUDA {torch.version.cuda}"
    if torch.version.cuda is None:
        return Finding(
            "PyTorch", "missing", f"{torch.__version__} is built without CUDA", _GET_PYTORCH
        )
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return Finding("PyTorch", "missing", detail, f"install PyTorch {oldest} or newer")
    return Finding("PyTorch", "ok", detail)


def _driver() -> Finding:
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout.split()
    except (OSError, subprocess.SubprocessError):
        answer = []
    if answer:
        return Finding("driver", "ok", answer[0])
    if torch.cuda.is_available():
        return Finding("driver", "ok", "works; nvidia-smi, which tells its version, is not here")
    return Finding(
        "driver",
        "missing",
        "no NVIDIA driver answers",
        f"with an NVIDIA GPU: install its driver, and see that nvidia-smi lists it; "
        f"without one: {_NOT_NEEDED}",
    )


def _gpus() -> list[Finding]:
    if not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            remedy = f"CUDA_VISIBLE_DEVICES is {hidden!r}; unset it to see every GPU"
        else:
            remedy = (
                "with an NVIDIA GPU: install a PyTorch for CUDA and a driver new enough for it; "
                f"without one: {_NOT_NEEDED}"
            )
        return [Finding("GPU", "missing", "PyTorch sees none", remedy)]
    return [_gpu(index) for index in range(torch.cuda.device_count())]


def _gpu(index: int) -> Finding:
    gpu = torch.cuda.get_device_properties(index)
    detail = f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.total_memory >> 30} GiB"
    if (gpu.major, gpu.minor) < OLDEST_CAPABILITY:
        oldest = ".".join(map(str, OLDEST_CAPABILITY))
        return Finding(
            "GPU",
            "missing",
            f"{detail}; kernels need compute capability {oldest}",
            "none is needed: PyTorch's own convolution runs",
        )
    return Finding("GPU", "ok", detail)


def _nvcc() -> str:
    nvcc = toolchain.find_nvcc()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            if (major, minor) >= OLDEST_CAPABILITY:
                toolchain.require(nvcc, f"sm_{major}{minor}")
    return f"CUDA {nvcc.release[0]}.{nvcc.release[1]}, {nvcc.path}"


def _python_headers() -> Finding:
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if header.is_file():
        return Finding("Python headers", "ok", str(header.parent))
    return Finding(
        "Python headers",
        "missing",
        f"{header} does not exist",
        "install them (Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)",
    )


def _cache() -> Finding:
    found = _explained("kernel cache", _cache_contents)
    if found.state != "ok":
        return found
    # What is there is good; can anything be added?
    folder = cache.root()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Finding(
            found.topic,
            "warning",
            f"{found.detail}; {folder} is read-only",
            "what is cached is used; to compile more, set CONVSMITH_CACHE to a folder that you own",
        )
    if (free := shutil.disk_usage(folder).free) < _LITTLE_SPACE_BYTES:
        return Finding(
            found.topic,
            "warning",
            f"{found.detail}; {free >> 20} MiB are free",
            "free some space (convsmith cache clear), or set CONVSMITH_CACHE to another disk",
        )
    return found


def _cache_contents() -> str:
    entries = cache.list_entries()
    size = sum(entry.size for entry in entries) / (1 << 20)
    return f"{cache.root()}, {len(entries)} kernels, {size:.1f} MiB"


def _compiling() -> Finding:
    if cache.compiling_disabled():
        return Finding(
            "compiling",
            "warning",
            "CONVSMITH_NO_COMPILE is set: only kernels that are in the cache run",
            "unset it to compile others",
        )
    return Finding("compiling", "ok", "allowed")
