"""A kernel as a program of the host: compiled with the sanitizers and kept in the kernel cache."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from convsmith.errors import CompilationError, ToolchainError
from convsmith.jit import cache

if TYPE_CHECKING:
    from convsmith.kernels.source import KernelSource

_HERE = Path(__file__).parent
_KERNEL_HEADER = "simulator.h"
_HEADERS = (_KERNEL_HEADER, "scheduler.h", "memory.h")
_RUNTIME = ("scheduler.cpp", "memory.cpp", "tensor_core.cpp", "driver.cpp")

# The file a kernel's text is compiled from, as the sanitizers' reports name it.
KERNEL_FILE = "kernel.cu"

# nvcc does not assume that pointers of different types point apart, and neither may g++ here.
_COMMON_FLAGS = ("-std=c++17", "-g1", "-fno-omit-frame-pointer", "-fno-strict-aliasing")
# The two checks left out take a third of the time; a pointer that goes astray is seen by
# AddressSanitizer when it is followed.
_SANITIZERS = (
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize=object-size,pointer-overflow",
    "-fno-sanitize-recover=all",
)
# No contraction: the same sums on every machine. Of large kernels, more optimisation takes longer
# than all launches of a test save.
_KERNEL_FLAGS = (
    "-Og",
    "-ffp-contract=off",
    *_SANITIZERS,
    "-DCONVSMITH_SIMULATOR",
    "-Wno-unknown-pragmas",
)
# The runtime is not checked itself, and joins kernels in one piece.
_RUNTIME_FLAGS = ("-O3", "-r", "-nostdlib")


def executable(source: KernelSource) -> Path:
    """The program that serves launches of ``source``, compiled now if the cache lacks it.

    Raises:
        ToolchainError: there is no C++ compiler, or it lacks the sanitizers.
        CompilationDisabledError: it has to be compiled, and CONVSMITH_NO_COMPILE is set.
        CompilationError: the compiler refused the kernel.
        CacheError: the kernel cache is unsafe, read-only, full or locked.
    """
    compiler = _compiler(os.environ.get("CXX"), os.environ.get("PATH"))
    version = _version(compiler)
    texts = [_HERE.joinpath(name).read_text() for name in (*_HEADERS, *_RUNTIME)]
    flags = (*_COMMON_FLAGS, *_RUNTIME_FLAGS)
    runtime_key = "simulator_" + cache.digest(version, platform.machine(), *texts, *flags)
    header_key = "simulator_header_" + cache.digest(runtime_key, *_KERNEL_FLAGS)
    kernel_key = f"{source.name}_" + cache.digest(header_key, source.cuda)

    def build_runtime(folder: Path) -> cache.Build:
        sources = [str(_HERE / name) for name in _RUNTIME]
        arguments = [*_RUNTIME_FLAGS, *sources, "-o", "runtime.o"]
        return _compile("simulator", runtime_key, compiler, arguments, folder)

    def build_header(folder: Path) -> cache.Build:
        return _precompile(compiler, folder)

    def build_kernel(folder: Path) -> cache.Build:
        runtime = cache.find_or_build(runtime_key, build_runtime).artifact
        header = cache.find_or_build(header_key, build_header).path
        folder.joinpath(KERNEL_FILE).write_text(source.cuda)
        inputs = ["-x", "c++", KERNEL_FILE, "-x", "none", str(runtime)]
        # A precompiled header counts only if it comes before everything else.
        paths = [f"-I{header}", "-include", _KERNEL_HEADER, f"-ffile-prefix-map={folder}=."]
        arguments = [*_KERNEL_FLAGS, *paths, *inputs, "-o", "kernel"]
        return _compile(source.name, kernel_key, compiler, arguments, folder)

    return cache.find_or_build(kernel_key, build_kernel).artifact


def _precompile(compiler: str, folder: Path) -> cache.Build:
    """Leaves the kernels' header in ``folder`` and, if the compiler can, its precompiled form.

    The standard library is most of it. GCC takes the precompiled form where it finds it beside the
    header and was called with the same flags; other compilers read the header.
    """
    shutil.copy(_HERE / _KERNEL_HEADER, folder)
    artifact = f"{_KERNEL_HEADER}.gch"
    arguments = [*_KERNEL_FLAGS, "-x", "c++-header", _KERNEL_HEADER, "-o", artifact]
    ended = _run(compiler, arguments, folder)
    command = shlex.join(ended.args)
    if ended.returncode != 0:
        # Should the header be wrong, the kernel will not compile either, and says why.
        folder.joinpath(artifact).unlink(missing_ok=True)
        command, artifact = "", _KERNEL_HEADER
    details = {"host compiler": _version(compiler)}
    return cache.Build("simulator_header", "simulator", artifact, command, details)


def _compile(name: str, key: str, compiler: str, arguments: list[str], folder: Path) -> cache.Build:
    """Compiles in ``folder``; the last of ``arguments`` is what the compiler leaves there."""
    ended = _run(compiler, arguments, folder)
    command = shlex.join(ended.args)
    if ended.returncode == 0:
        details = {"host compiler": _version(compiler)}
        return cache.Build(name, "simulator", arguments[-1], command, details)
    if _NO_SANITIZERS.search(ended.stdout):
        raise ToolchainError(
            f"{compiler} has no AddressSanitizer, which the simulator needs:\n"
            f"{ended.stdout.strip()}\n{_REMEDY}"
        )
    kept = cache.keep_failed(key, folder)
    raise CompilationError(
        f"{name} was not compiled for the simulator. Its source is in {kept}.",
        log=ended.stdout,
        command=f"cd {shlex.quote(str(kept))} && {command}",
    )


def _run(compiler: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the compiler in ``folder``: its command, and how it ended with what it printed."""
    return subprocess.run(
        [compiler, *_COMMON_FLAGS, *arguments],
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


_NO_SANITIZERS = re.compile(
    r"cannot find \S*(asan|ubsan)|sanitizer/\S+: No such file|argument to '?-fsanitize"
)
_REMEDY = (
    "Remedy: install GCC with its sanitizers (Debian, Ubuntu: apt install g++; Fedora: "
    "dnf install gcc-c++ libasan libubsan), or set CXX to a compiler that has them."
)


@functools.cache
def _compiler(chosen: str | None, path: str | None) -> str:
    """The C++ compiler on ``path``: $CXX, else g++, else c++."""
    candidates = (chosen,) if chosen else ("g++", "c++")
    for candidate in candidates:
        if found := shutil.which(candidate, path=path):
            return found
    raise ToolchainError(
        f"There is no C++ compiler for the simulator: {' and '.join(candidates)} "
        f"{'is' if chosen else 'are'} not on PATH.\n{_REMEDY}"
    )


@functools.cache
def _version(compiler: str) -> str:
    """The first line that ``--version`` prints."""
    try:
        answer = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolchainError(f"{compiler} does not run: {error}.\n{_REMEDY}") from error
    return answer.stdout.partition("\n")[0]
