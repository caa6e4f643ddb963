"""What compiles a kernel here: nvcc, the host compiler and ninja, or why there is none.

load_inline takes whatever it finds and leaves the rest to the compilers' own error messages. This
module looks at the same places first, so that what is missing or does not fit is said in one
sentence, with the remedy on a line of its own.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from convsmith.errors import ToolchainError
from convsmith.jit import cache

# What the result depends on: another value of any of these is another toolchain.
_VARIABLES = (
    "PATH",
    "CUDA_HOME",
    "CUDA_PATH",
    "CXX",
    "CC",
    "NVCC_CCBIN",
    "NVCC_PREPEND_FLAGS",
    "NVCC_APPEND_FLAGS",
)
_COMPILER_OPTIONS = _VARIABLES[_VARIABLES.index("CC") :]

_DEFAULT_HOME = Path("/usr/local/cuda")
_ANSWER_SECONDS = 60


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler.

    Attributes:
        home: the CUDA toolkit's folder, which has bin/nvcc.
        version: all that ``nvcc --version`` prints.
        release: its CUDA version, such as (13, 0).
    """

    home: Path
    version: str
    release: tuple[int, int]

    @property
    def path(self) -> Path:
        """The program."""
        return self.home / "bin" / "nvcc"


@dataclass(frozen=True)
class HostCompiler:
    """The C++ compiler that builds the binding and links.

    Attributes:
        command: as load_inline calls it.
        version: the first line that ``--version`` prints.
    """

    command: str
    version: str


@dataclass(frozen=True)
class Toolchain:
    """Everything load_inline needs."""

    nvcc: Nvcc
    host_compiler: HostCompiler
    ninja: Path

    @property
    def digest(self) -> str:
        """Hash of what can change the machine code that comes out."""
        options = (os.environ.get(name, "") for name in _COMPILER_OPTIONS)
        return cache.digest(self.nvcc.version, self.host_compiler.version, *options)


def find() -> Toolchain:
    """The toolchain of this process's environment; looked for once per environment.

    Raises:
        ToolchainError: something is missing or does not fit; the second line is the remedy.
    """
    found = _find(tuple(os.environ.get(name) for name in _VARIABLES))
    if isinstance(found, str):
        raise ToolchainError(found)
    return found


@functools.cache
def _find(environment: tuple[str | None, ...]) -> Toolchain | str:
    """The toolchain, or what the error says; ``environment`` is the cache's key."""
    try:
        # Without a host compiler nvcc fails too, and says so less clearly.
        host_compiler = find_host_compiler()
        return Toolchain(find_nvcc(), host_compiler, find_ninja())
    except ToolchainError as error:
        return str(error)


def find_nvcc() -> Nvcc:
    """The CUDA compiler: from CUDA_HOME or CUDA_PATH, pip, PATH, or /usr/local/cuda."""
    if torch.version.hip is not None:
        raise ToolchainError(
            "This PyTorch is built for AMD GPUs, which ConvSmith's kernels do not run on.\n"
            "Remedy: none is needed, PyTorch's own convolution runs."
        )
    home = _cuda_home()
    nvcc = home / "bin" / "nvcc"
    version = _answer(str(nvcc), "--version")
    release = re.search(r"release (\d+)\.(\d+)", version)
    if release is None:
        first_line = version.strip().partition("\n")[0]
        raise ToolchainError(
            f"{nvcc} does not say which CUDA release it is: it printed {first_line!r}.\n"
            f"Remedy: {_how_to_get_nvcc()}"
        )
    found = Nvcc(home, version, (int(release[1]), int(release[2])))
    if torch.version.cuda is not None and found.release[0] != int(torch.version.cuda.split(".")[0]):
        raise ToolchainError(
            f"{nvcc} is of CUDA {release[1]}.{release[2]}, but this PyTorch is built for CUDA "
            f"{torch.version.cuda}, and the two do not work together.\n"
            f"Remedy: {_how_to_get_nvcc()}"
        )
    return found


def find_host_compiler() -> HostCompiler:
    """The C++ compiler: from CXX, or ``c++``; and nvcc's, from CC or NVCC_CCBIN, or ``gcc``."""
    command = os.environ.get("CXX", "c++")
    by_nvcc = os.environ.get("CC") or os.environ.get("NVCC_CCBIN") or "gcc"
    for needed in (command, by_nvcc):
        if shutil.which(needed) is None:
            raise ToolchainError(
                f"There is no C++ compiler: {needed!r} is not on PATH.\n"
                "Remedy: install gcc and g++ (Debian, Ubuntu: apt install g++; Fedora: "
                "dnf install gcc-c++), or set CXX and CC to the ones you have."
            )
    return HostCompiler(command, _answer(command, "--version").partition("\n")[0])


def find_ninja() -> Path:
    """The ninja program: on PATH, or where pip put it (an environment need not be activated)."""
    if on_path := shutil.which("ninja"):
        return Path(on_path)
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        if (program := Path(ninja.BIN_DIR) / "ninja").is_file():
            return program
    raise ToolchainError(
        "There is no ninja, which PyTorch compiles extensions with.\nRemedy: pip install ninja"
    )


def require(nvcc: Nvcc, architecture: str) -> None:
    """Raises ToolchainError unless ``nvcc`` can compile for ``architecture``, such as "sm_90a"."""
    wanted = _number(architecture)
    known = sorted(map(_number, _answer(str(nvcc.path), "--list-gpu-code").split()))
    if wanted in known:
        return
    release = ".".join(map(str, nvcc.release))
    if wanted < known[0]:
        remedy = "this GPU needs an older CUDA, and a PyTorch built for that one."
    else:
        remedy = f"this GPU needs a newer CUDA {nvcc.release[0]}: {_how_to_get_nvcc()}"
    raise ToolchainError(
        f"{nvcc.path} (CUDA {release}) cannot compile for {architecture}; it knows sm_{known[0]} "
        f"to sm_{known[-1]}.\n"
        f"Remedy: {remedy}"
    )


def _number(architecture: str) -> int:
    """90 of "sm_90" and of "sm_90a"."""
    return int(architecture.removeprefix("sm_").rstrip("af"))


def _cuda_home() -> Path:
    """The folder of the CUDA toolkit, whose bin/nvcc exists."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if chosen := os.environ.get(variable):
            if (Path(chosen) / "bin" / "nvcc").is_file():
                return Path(chosen)
            raise ToolchainError(
                f"{variable} is {chosen}, which has no bin/nvcc.\n"
                f"Remedy: unset it, or {_how_to_get_nvcc()}"
            )
    if installed_by_pip := _pip_home():
        return installed_by_pip
    if on_path := shutil.which("nvcc"):
        return _home_of(Path(on_path))
    if (_DEFAULT_HOME / "bin" / "nvcc").is_file():
        return _DEFAULT_HOME
    raise ToolchainError(
        "There is no nvcc: CUDA_HOME is not set, and neither PATH nor "
        f"{_DEFAULT_HOME} has one.\n"
        f"Remedy: {_how_to_get_nvcc()}"
    )


def _pip_home() -> Path | None:
    """Where ``pip install nvidia-cuda-nvcc`` puts the toolkit of PyTorch's own CUDA, if it did."""
    spec = importlib.util.find_spec("nvidia") if torch.version.cuda else None
    for folder in (spec and spec.submodule_search_locations) or ():
        home = Path(folder) / f"cu{str(torch.version.cuda).split('.')[0]}"
        if (home / "bin" / "nvcc").is_file():
            return home
    return None


def _home_of(nvcc: Path) -> Path:
    """The toolkit's folder of an nvcc on PATH, which may be a link or a script that calls it."""
    for program in (nvcc, nvcc.resolve()):
        home = program.parent.parent
        if (home / "nvvm").is_dir() or (home / "include" / "cuda_runtime.h").is_file():
            return home
    top = re.search(r"^#\$ TOP=(.+)$", _answer(str(nvcc), "--dryrun", "-E", "-x", "cu", "-"), re.M)
    if top is not None and (home := Path(top[1]).resolve()).joinpath("bin", "nvcc").is_file():
        return home
    return nvcc.parent.parent


def _how_to_get_nvcc() -> str:
    """One sentence."""
    cuda = torch.version.cuda
    toolkit = (
        f"install the CUDA {cuda or ''} toolkit (https://developer.nvidia.com/cuda-toolkit-archive)"
        " and set CUDA_HOME to its folder"
    ).replace("  ", " ")
    # The packages of CUDA 12 and before have no nvcc in them.
    if cuda is not None and int(cuda.split(".")[0]) >= 13:
        return (
            f"pip install 'nvidia-cuda-nvcc=={cuda}.*' 'nvidia-cuda-cccl=={cuda}.*', or {toolkit}."
        )
    return f"{toolkit}."


def _answer(*command: str) -> str:
    """What a command prints; ToolchainError if it does not run, fails or does not end."""
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        reason = f"gave no answer within {_ANSWER_SECONDS} s"
    except OSError as error:
        reason = f"cannot be run: {error.strerror}"
    else:
        if ended.returncode == 0:
            return ended.stdout
        reason = f"failed with status {ended.returncode}: {ended.stdout.strip() or 'no message'}"
    raise ToolchainError(
        f"{' '.join(command)} {reason}.\n"
        f"Remedy: install {Path(command[0]).name} anew, or point PATH, CUDA_HOME or CXX at another."
    )
