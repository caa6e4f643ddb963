"""Finding nvcc, the host compiler and ninja, or saying in one sentence why not and what to do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from convsmith.errors import ToolchainError
from convsmith.jit import toolchain

VERSION = "Cuda compilation tools, release {release}, V{release}.88"


def write_program(path: Path, script: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def write_nvcc(home: Path, release: str = "13.0", codes: str = "sm_75 sm_90 sm_121") -> Path:
    """A toolkit's folder whose nvcc says it is of that release and knows those GPUs."""
    write_program(
        home / "bin" / "nvcc",
        f"echo run >> {home}/log\n"
        f'case "$1" in --version) echo "{VERSION.format(release=release)}";;\n'
        f"--list-gpu-code) echo {codes};; *) exit 1;; esac",
    )
    (home / "nvvm").mkdir(exist_ok=True)
    return home


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, with a C++ compiler and ninja but no nvcc anywhere."""
    folder = tmp_path / "tools"
    for name in ("c++", "gcc"):
        write_program(folder / name, f"echo '{name} 12.2.0'\necho Copyright")
    write_program(folder / "ninja", "echo 1.13")
    for name in toolchain._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin/nothing")
    monkeypatch.setattr(toolchain, "_DEFAULT_HOME", tmp_path / "no toolkit")
    monkeypatch.setattr(torch.version, "cuda", None)
    return folder


def error_of_find() -> str:
    """What find() raises; it is two lines, of which the second is the remedy."""
    with pytest.raises(ToolchainError) as caught:
        toolchain.find()
    what, remedy = str(caught.value).splitlines()
    assert remedy.startswith("Remedy: ")
    return what


# Finding them


def test_cuda_home_comes_first(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nvcc(tmp_path / "on path", "12.0")
    write_nvcc(tmp_path / "default", "12.1")
    write_nvcc(tmp_path / "cuda path", "12.2")
    write_nvcc(tmp_path / "cuda home", "12.3")
    monkeypatch.setattr(toolchain, "_DEFAULT_HOME", tmp_path / "default")
    assert toolchain.find().nvcc.home == tmp_path / "default"
    monkeypatch.setenv("PATH", f"{tools}:{tmp_path / 'on path' / 'bin'}")
    assert toolchain.find().nvcc.home == tmp_path / "on path"
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "cuda path"))
    assert toolchain.find().nvcc.home == tmp_path / "cuda path"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda home"))
    found = toolchain.find()
    assert found.nvcc.release == (12, 3)
    assert found.nvcc.version == VERSION.format(release="12.3") + "\n"
    assert found.nvcc.path == tmp_path / "cuda home" / "bin" / "nvcc"
    assert found.host_compiler == toolchain.HostCompiler("c++", "c++ 12.2.0")
    assert found.ninja == tools / "ninja"


def test_a_toolkit_that_pip_installed_is_found(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes before PATH, because it is the remedy for a wrong nvcc there."""
    write_nvcc(tmp_path / "old", "12.0")
    monkeypatch.setenv("PATH", f"{tools}:{tmp_path / 'old' / 'bin'}")
    home = write_nvcc(tmp_path / "site-packages" / "nvidia" / "cu13")
    # Some of NVIDIA's packages bring this file; then Python looks for no other folder "nvidia".
    (home.parent / "__init__.py").touch()
    monkeypatch.setitem(sys.modules, "nvidia", None)
    monkeypatch.delitem(sys.modules, "nvidia")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert toolchain.find_nvcc().home == home


def test_a_link_on_path_leads_to_its_toolkit(tools: Path, tmp_path: Path) -> None:
    home = write_nvcc(tmp_path / "cuda")
    (tools / "nvcc").symlink_to(home / "bin" / "nvcc")
    assert toolchain.find().nvcc.home == home


def test_a_script_on_path_leads_to_the_toolkit_that_its_dry_run_names(
    tools: Path, tmp_path: Path
) -> None:
    home = write_nvcc(tmp_path / "cuda")
    write_program(tools / "nvcc", f"echo '#$ _SPACE_= '; echo '#$ TOP={home}/bin/..'")
    assert toolchain.find().nvcc.home == home


def test_the_dry_run_of_a_real_nvcc_names_its_toolkit(
    tools: Path, cuda_compiler: toolchain.Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tools / "gcc").unlink()  # nvcc asks it what system this is
    monkeypatch.setenv("PATH", f"{tools}:{os.defpath}")
    write_program(tools / "nvcc", f'exec {cuda_compiler.nvcc.path} "$@"')
    assert toolchain.find().nvcc.home == cuda_compiler.nvcc.home.resolve()


def test_ninja_need_not_be_on_path(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a virtual environment's Python is called without activating it."""
    (tools / "ninja").unlink()
    installed = write_program(tmp_path / "environment" / "ninja", "echo 1.13")
    monkeypatch.setitem(sys.modules, "ninja", SimpleNamespace(BIN_DIR=str(installed.parent)))
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: name == "ninja")
    assert toolchain.find_ninja() == installed


def test_it_is_looked_for_once_per_environment(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = write_nvcc(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert toolchain.find() is toolchain.find()
    assert (home / "log").read_text() == "run\n"
    # An error is remembered as well: a process without nvcc asks at every convolution.
    write_program(home / "bin" / "nvcc", f"echo run >> {home}/log; exit 1")
    monkeypatch.setenv("CUDA_HOME", f"{home}/")
    assert error_of_find() == error_of_find()
    assert (home / "log").read_text() == "run\nrun\n"


def test_the_digest_covers_versions_and_options(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for release in ("13.0", "13.1"):
        monkeypatch.setenv("CUDA_HOME", str(write_nvcc(tmp_path / release, release)))
        digests.append(toolchain.find().digest)
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-lineinfo")
    digests.append(toolchain.find().digest)
    monkeypatch.setenv("CXX", str(write_program(tools / "clang++", "echo clang 19")))
    digests.append(toolchain.find().digest)
    assert len(set(digests)) == 4
    # Where a toolkit lies says nothing about what it compiles.
    monkeypatch.setenv("CUDA_HOME", str(write_nvcc(tmp_path / "elsewhere", "13.1")))
    assert toolchain.find().digest == digests[-1]


# What is missing or wrong


def test_no_nvcc(tools: Path) -> None:
    assert error_of_find().startswith("There is no nvcc: CUDA_HOME is not set, and neither PATH")


def test_a_cuda_home_without_nvcc(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nvcc(tools.parent / "cuda")
    monkeypatch.setenv("PATH", f"{tools}:{tools.parent / 'cuda' / 'bin'}")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    # An explicit choice is not replaced by another one in silence.
    assert error_of_find() == "CUDA_HOME is /nowhere, which has no bin/nvcc."


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo broken; exit 3", "failed with status 3: broken"),
        ("echo hello", "does not say which CUDA release it is: it printed 'hello'"),
        ("kill -9 $$", "failed with status -9: no message"),
        ("sleep 60", "gave no answer within 0.2 s"),
    ],
)
def test_an_nvcc_that_does_not_work(
    tools: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    home = tools.parent / "cuda"
    write_program(home / "bin" / "nvcc", script)
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("PATH", f"{tools}:{os.defpath}")
    monkeypatch.setattr(toolchain, "_ANSWER_SECONDS", 0.2 if "sleep" in script else 60)
    what = error_of_find()
    assert str(home / "bin" / "nvcc") in what
    assert expected in what


def test_an_nvcc_that_is_no_program(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tools.parent / "cuda"
    nvcc = write_program(home / "bin" / "nvcc", "")
    nvcc.write_bytes(b"\x7fELF and then nothing")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert "cannot be run: Exec format error" in error_of_find()


def test_an_nvcc_of_another_cuda_than_pytorchs(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(write_nvcc(tools.parent / "cuda", "13.0")))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(ToolchainError) as caught:
        toolchain.find_nvcc()
    assert "is of CUDA 13.0, but this PyTorch is built for CUDA 12.8" in str(caught.value)
    assert "Remedy: install the CUDA 12.8 toolkit" in str(caught.value)
    # A difference in the second number is none.
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert toolchain.find_nvcc().release == (13, 0)
    monkeypatch.setenv("CUDA_HOME", str(write_nvcc(tools.parent / "old", "12.0")))
    with pytest.raises(ToolchainError, match=r"pip install 'nvidia-cuda-nvcc==13\.2\.\*'"):
        toolchain.find_nvcc()


def test_a_pytorch_for_amd(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert error_of_find().startswith("This PyTorch is built for AMD GPUs")


@pytest.mark.parametrize(
    ("architecture", "remedy"),
    [
        ("sm_70", "this GPU needs an older CUDA"),
        ("sm_150", "this GPU needs a newer CUDA 13: install"),
    ],
)
def test_a_gpu_that_nvcc_does_not_know(tools: Path, architecture: str, remedy: str) -> None:
    nvcc = toolchain.Nvcc(write_nvcc(tools.parent / "cuda"), "", (13, 0))
    with pytest.raises(ToolchainError) as caught:
        toolchain.require(nvcc, architecture)
    assert f"cannot compile for {architecture}; it knows sm_75 to sm_121" in str(caught.value)
    assert f"Remedy: {remedy}" in str(caught.value)


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90", "sm_90a", "sm_121"])
def test_a_gpu_that_nvcc_knows(tools: Path, architecture: str) -> None:
    nvcc = toolchain.Nvcc(write_nvcc(tools.parent / "cuda"), "", (13, 0))
    toolchain.require(nvcc, architecture)


def test_the_real_nvcc_knows_its_gpus(cuda_compiler: toolchain.Toolchain) -> None:
    for architecture in ("sm_80", "sm_90", "sm_90a"):
        toolchain.require(cuda_compiler.nvcc, architecture)
    with pytest.raises(ToolchainError):
        toolchain.require(cuda_compiler.nvcc, "sm_20")


@pytest.mark.parametrize("name", ["c++", "gcc"])
def test_no_host_compiler(tools: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("CUDA_HOME", str(write_nvcc(tools.parent / "cuda")))
    (tools / name).unlink()
    assert error_of_find() == f"There is no C++ compiler: {name!r} is not on PATH."


@pytest.mark.parametrize("variable", ["CXX", "CC"])
def test_a_host_compiler_that_is_not_there(
    tools: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(write_nvcc(tools.parent / "cuda")))
    monkeypatch.setenv(variable, "g++-99")
    assert error_of_find() == "There is no C++ compiler: 'g++-99' is not on PATH."


def test_no_ninja(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(write_nvcc(tools.parent / "cuda")))
    (tools / "ninja").unlink()
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match=r"There is no ninja.*\nRemedy: pip install ninja"):
        toolchain.find()
