"""convsmith doctor: machines of every kind, and a remedy for all that is not ok."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from convsmith import doctor
from convsmith.doctor import Finding, diagnose
from convsmith.errors import ToolchainError
from convsmith.jit import cache, toolchain

TOPICS = [
    "PyTorch",
    "driver",
    "GPU",
    "nvcc",
    "C++ compiler",
    "Python headers",
    "ninja",
    "kernel cache",
    "compiling",
]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which everything is well, whatever this one is like; its folder of programs."""
    programs = tmp_path / "programs"
    programs.mkdir()
    write_program(programs / "nvidia-smi", "printf '580.65.06\\n580.65.06\\n'")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("CONVSMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CONVSMITH_NO_COMPILE", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    see_gpus(monkeypatch, ("NVIDIA H200", 9, 0, 139 << 30))
    nvcc = toolchain.Nvcc(Path("/opt/cuda"), "", (13, 0))
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: nvcc)
    monkeypatch.setattr(toolchain, "require", lambda nvcc, architecture: None)
    compiler = toolchain.HostCompiler("c++", "c++ 12.2.0")
    monkeypatch.setattr(toolchain, "find_host_compiler", lambda: compiler)
    monkeypatch.setattr(toolchain, "find_ninja", lambda: Path("/usr/bin/ninja"))
    header = tmp_path / "include" / "Python.h"
    header.parent.mkdir()
    header.touch()
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(header.parent))
    return programs


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def see_gpus(monkeypatch: pytest.MonkeyPatch, *gpus: tuple[str, int, int, int]) -> None:
    """Makes PyTorch see these GPUs: name, compute capability, bytes of memory."""
    properties = [
        SimpleNamespace(name=name, major=major, minor=minor, total_memory=memory)
        for name, major, minor, memory in gpus
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: gpus[index][1:3])


def finding(topic: str) -> Finding:
    """The one finding about ``topic``; every finding that is not ok has a remedy."""
    findings = diagnose()
    assert all((found.state == "ok") == (found.remedy == "") for found in findings)
    assert all("\n" not in found.detail for found in findings)
    (found,) = (found for found in findings if found.topic == topic)
    return found


def test_a_machine_on_which_all_is_well(machine: Path) -> None:
    findings = diagnose()
    assert [found.topic for found in findings] == TOPICS
    assert {found.state for found in findings} == {"ok"}
    details = {found.topic: found.detail for found in findings}
    assert details["PyTorch"] == "2.11.0+cu130, CUDA 13.0"
    assert details["driver"] == "580.65.06"
    assert details["GPU"] == "NVIDIA H200, compute capability 9.0, 139 GiB"
    assert details["nvcc"] == "CUDA 13.0, /opt/cuda/bin/nvcc"
    assert details["kernel cache"].endswith("cache, 0 kernels, 0.0 MiB")
    assert not cache.root().exists()  # looking writes nothing


def test_this_machine_gets_an_answer_too() -> None:
    topics = [found.topic for found in diagnose()]
    assert sorted(set(topics), key=topics.index) == TOPICS


def test_a_pytorch_without_cuda(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    found = finding("PyTorch")
    assert (found.state, found.detail) == ("missing", "2.11.0+cu130 is built without CUDA")


def test_a_pytorch_that_is_too_old(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.7.1")
    assert finding("PyTorch").remedy == "install PyTorch 2.8 or newer"
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git1234")
    assert finding("PyTorch").state == "ok"


@pytest.mark.parametrize("script", [None, "exit 9", "true"])
def test_no_driver(machine: Path, monkeypatch: pytest.MonkeyPatch, script: str | None) -> None:
    (machine / "nvidia-smi").unlink()
    if script is not None:
        write_program(machine / "nvidia-smi", script)
    # A container may have the driver without the program.
    assert finding("driver").state == "ok"
    see_gpus(monkeypatch)
    found = finding("driver")
    assert (found.state, found.detail) == ("missing", "no NVIDIA driver answers")
    assert "convsmith demo" in found.remedy


def test_no_gpu(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch)
    assert finding("GPU").state == "missing"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert finding("GPU").remedy.startswith("CUDA_VISIBLE_DEVICES is ''; unset it")


def test_each_gpu_is_named_and_an_old_one_as_such(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_gpus(monkeypatch, ("Tesla P100", 6, 0, 16 << 30), ("Tesla V100", 7, 0, 32 << 30))
    asked = []
    monkeypatch.setattr(toolchain, "require", lambda nvcc, architecture: asked.append(architecture))
    old, new = (found for found in diagnose() if found.topic == "GPU")
    assert (old.state, new.state) == ("missing", "ok")
    assert old.detail.endswith("16 GiB; kernels need compute capability 7.0")
    assert asked == ["sm_70"]  # nothing is compiled for the old one


@pytest.mark.parametrize(
    ("topic", "function"),
    [
        ("nvcc", "find_nvcc"),
        ("nvcc", "require"),
        ("C++ compiler", "find_host_compiler"),
        ("ninja", "find_ninja"),
    ],
)
def test_what_the_toolchain_lacks_is_split_into_detail_and_remedy(
    machine: Path, monkeypatch: pytest.MonkeyPatch, topic: str, function: str
) -> None:
    def fail(*arguments: object) -> None:
        raise ToolchainError("There is none.\nRemedy: get one.")

    monkeypatch.setattr(toolchain, function, fail)
    assert finding(topic) == Finding(topic, "missing", "There is none.", "get one.")


def test_no_python_headers(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: "/nowhere")
    assert finding("Python headers").detail == "/nowhere/Python.h does not exist"


def test_a_cache_that_others_may_write(machine: Path) -> None:
    cache.root().mkdir(mode=0o777)
    cache.root().chmod(0o777)
    found = finding("kernel cache")
    assert found.state == "missing"
    assert "may be written by other users" in found.detail


def test_a_cache_that_may_not_be_written(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    found = finding("kernel cache")
    assert (found.state, found.detail.endswith("is read-only")) == ("warning", True)


def test_a_nearly_full_disk(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=5 << 20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert finding("kernel cache").detail.endswith("5 MiB are free")


def test_what_is_in_the_cache(machine: Path) -> None:
    def build(folder: Path) -> cache.Build:
        (folder / "artifact").write_bytes(bytes(3 << 20))
        return cache.Build("kernel", "sm_90", "artifact", "make it", {})

    cache.find_or_build("kernel_0", build)
    cache.find_or_build("kernel_1", build)
    assert finding("kernel cache").detail.endswith(", 2 kernels, 6.0 MiB")


def test_compiling_forbidden(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVSMITH_NO_COMPILE", "1")
    assert finding("compiling").state == "warning"
