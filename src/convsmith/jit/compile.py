"""KernelSource -> callable: from the kernel cache if it is there, else through load_inline.

PyTorch's load_inline writes its sources outside its lock, waits for ever on a lock that a killed
process left, lets waiters import a failed build, changes the lists passed to it, names a second
build ``<name>_v1``, and does not see a change of PyTorch's version. None of it can happen here:
each build has a fresh folder of its own under the cache's lock, gets fresh lists, and the key of
its entry covers all that goes in.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from convsmith.errors import CacheError, CompilationError, ConvSmithError, ToolchainError
from convsmith.jit import cache, toolchain

if TYPE_CHECKING:
    from convsmith.jit.toolchain import Toolchain
    from convsmith.kernels.source import KernelSource

_log = logging.getLogger("convsmith")

_ARCHITECTURE = re.compile(r"sm_(?P<major>\d+)(?P<minor>\d[af]?)")
_HOST_FLAGS = ("-O2",)
_CUDA_FLAGS = ("-O3", "-std=c++17")
# A library that is linked but not needed would have to be found at every load.
_LINK_FLAGS = ("-Wl,--as-needed",)

# What ninja -v prints of a command that failed, up to the next command's line or its own last one.
_FAILED_STEP = re.compile(
    r"^FAILED: .*\n(?P<command>.+)\n(?P<log>(?:(?!\[\d+/\d+\] |ninja: ).*\n?)*)", re.MULTILINE
)
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded|File size limit exceeded")
_LEAST_FREE_BYTES = 1 << 20
_DEFECT = "none of yours: please report it, with what follows."
_REMEDIES = (
    ("unsupported GNU version", "install an older gcc and g++ and set CC and CXX to them."),
    ("signal 9|Killed", "the machine ran out of memory; end other programs, or set MAX_JOBS=1."),
    (
        r"-l(c10|torch)_cuda",
        "this PyTorch is built without CUDA; install one that is not "
        "(https://pytorch.org/get-started/locally).",
    ),
    (
        r"Python\.h: No such file",
        "install Python's headers (Debian, Ubuntu: apt install python3-dev; Fedora: dnf install "
        "python3-devel).",
    ),
    (
        "No such file or directory|cannot find -lcudart",
        "the CUDA toolkit is incomplete; install it anew.",
    ),
)

_loaded: dict[tuple[KernelSource, str], ModuleType] = {}
_loading: dict[tuple[KernelSource, str], threading.Lock] = {}
_MOST_AT_ONCE = 16  # a compiler takes up to half a GiB


def load(source: KernelSource, architecture: str) -> ModuleType:
    """The compiled kernel: ``launch(problem: bytes, stream: int, *addresses: int)``.

    Compiles it (seconds) the first time anyone on this machine asks, reads it from the kernel
    cache (milliseconds) the first time a process asks, and afterwards looks it up.

    Where there is no usable compiler, or CONVSMITH_NO_COMPILE is set, an entry that any compiler
    built from this source, for this PyTorch and this Python, is taken.

    Args:
        source: what to compile.
        architecture: of the GPU, such as "sm_80" or "sm_90a".

    Raises:
        ToolchainError: it has to be compiled, and there is no compiler that could.
        CompilationDisabledError: it has to be compiled, and CONVSMITH_NO_COMPILE is set.
        CompilationError: a compiler refused it.
        CacheError: the kernel cache is unsafe, read-only, full or locked.
    """
    wanted = (source, architecture)
    module = _loaded.get(wanted)
    if module is None:
        with _loading.setdefault(wanted, threading.Lock()):
            module = _loaded.get(wanted)
            if module is None:
                module = _loaded[wanted] = _import(_entry(source, architecture))
    return module


def load_all(sources: Iterable[KernelSource], architecture: str) -> None:
    """Load several kernels; those that have to be compiled are, on all processors at once.

    Nothing is said of one that cannot be had: `load` does, when it is asked for it.
    """
    wanted = set(sources)

    def attempt(source: KernelSource) -> None:
        with contextlib.suppress(ConvSmithError):
            load(source, architecture)

    threads = max(1, min(len(wanted), len(os.sched_getaffinity(0)), _MOST_AT_ONCE))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(attempt, wanted))


def _entry(source: KernelSource, architecture: str) -> cache.Entry:
    """The cache entry of a kernel, compiled now if it has to be."""
    code = f"{source.name}_{_digest_of_code(source, architecture)}_"
    if cache.compiling_disabled():
        found = cache.find_newest(code)
        if found is None:
            raise cache.disabled(code.rstrip("_"))
        return found
    try:
        tools = toolchain.find()
    except ToolchainError:
        found = cache.find_newest(code)
        if found is None:
            raise
        return found
    key = code + tools.digest
    return cache.find_or_build(key, lambda folder: _build(source, architecture, tools, key, folder))


def _digest_of_code(source: KernelSource, architecture: str) -> str:
    """Hash of all that decides what the compiled kernel does and what it can be loaded into."""
    return cache.digest(
        source.cuda,
        _binding(),
        *_HOST_FLAGS,
        *_CUDA_FLAGS,
        *_LINK_FLAGS,
        architecture,
        torch.__version__,
        str(sysconfig.get_config_var("SOABI")),
    )


@functools.cache
def _binding() -> str:
    return Path(__file__).with_name("binding.cpp").read_text()


def _build(
    source: KernelSource, architecture: str, tools: Toolchain, key: str, folder: Path
) -> cache.Build:
    """Compiles into ``folder`` and leaves there the library and the sources it was built from."""
    capability = _capability(architecture)
    toolchain.require(tools.nvcc, architecture)
    _refuse_what_ninja_cannot_quote(folder)
    _log.info("compiling %s for %s", source.name, architecture)
    from torch.utils.cpp_extension import load_inline

    virtual = architecture.replace("sm", "compute")
    with _surroundings.of(tools, capability):
        try:
            module = load_inline(  # type: ignore[no-untyped-call]
                name=key,
                cpp_sources=[_binding()],
                cuda_sources=[source.cuda],
                extra_cflags=[*_HOST_FLAGS],
                extra_cuda_cflags=[*_CUDA_FLAGS, f"-gencode=arch={virtual},code={architecture}"],
                extra_ldflags=[*_LINK_FLAGS, *_cuda_runtime(tools.nvcc.home, folder)],
                build_directory=str(folder),
                no_implicit_headers=True,
            )
        except RuntimeError as error:
            raise _explained(str(error), source, architecture, key, folder) from None
        except ImportError as error:
            raise _not_loadable(source.name, error) from error
    library = f"{module.__name__}.so"
    commands = subprocess.run(
        [tools.ninja, "-t", "commands"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    for file in folder.iterdir():
        if file.name not in (library, "main.cpp", "cuda.cu"):
            file.unlink()
    return cache.Build(
        name=source.name,
        architecture=architecture,
        artifact=library,
        command=commands.strip().replace(f"{folder}/", ""),
        details={
            "nvcc": tools.nvcc.version.strip(),
            "host compiler": tools.host_compiler.version,
            "torch": torch.__version__,
        },
    )


def _import(entry: cache.Entry) -> ModuleType:
    """The extension module in a cache entry; it is not put into sys.modules."""
    spec = importlib.util.spec_from_file_location(entry.artifact.stem, entry.artifact)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise _not_loadable(entry.build.name, error) from error
    return module


def _capability(architecture: str) -> str:
    """Compute capability as TORCH_CUDA_ARCH_LIST has it: "9.0a" for "sm_90a"."""
    match = _ARCHITECTURE.fullmatch(architecture)
    if match is None:
        raise ValueError(f"architecture must be like 'sm_90' or 'sm_90a', but is {architecture!r}")
    return f"{match['major']}.{match['minor']}"


class _Surroundings:
    """What load_inline reads besides its arguments: the environment, and PyTorch's CUDA_HOME.

    A process has them once, so that builds at the same time are those that want the same.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._builds = 0
        self._wanted: tuple[str, str] | None = None
        self._before = contextlib.ExitStack()

    @contextlib.contextmanager
    def of(self, tools: Toolchain, capability: str) -> Iterator[None]:
        """Those of a build; others that want something else wait for its end."""
        wanted = (tools.digest, capability)
        with self._changed:
            self._changed.wait_for(lambda: self._builds == 0 or self._wanted == wanted)
            if self._builds == 0:
                self._before.enter_context(_set(tools, capability))
                self._wanted = wanted
            self._builds += 1
        try:
            yield
        finally:
            with self._changed:
                self._builds -= 1
                if self._builds == 0:
                    self._before.close()
                    self._changed.notify_all()


_surroundings = _Surroundings()


@contextlib.contextmanager
def _set(tools: Toolchain, capability: str) -> Iterator[None]:
    """Sets them, and sets them back."""
    from torch.utils import cpp_extension

    changes = {
        # torch 2.8 compiles for these as well as for those that the flags name.
        "TORCH_CUDA_ARCH_LIST": capability,
        # Compilers' messages in English: some are looked for, and all must be ASCII.
        "LC_ALL": "C",
        # An environment that is not activated has its ninja elsewhere.
        "PATH": os.pathsep.join((os.environ.get("PATH", os.defpath), str(tools.ninja.parent))),
        # It would bypass the nvcc that was looked at.
        "PYTORCH_NVCC": None,
    }
    before = {name: os.environ.get(name) for name in changes}
    home = cpp_extension.CUDA_HOME
    _set_environment(changes)
    cpp_extension.CUDA_HOME = str(tools.nvcc.home)
    try:
        yield
    finally:
        cpp_extension.CUDA_HOME = home
        _set_environment(before)


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _cuda_runtime(home: Path, folder: Path) -> list[str]:
    """Linker flags that find ``-lcudart`` where pip installed it, without its unversioned name."""
    versioned = sorted(home.glob("lib*/libcudart.so*"))
    if not versioned or any(library.name == "libcudart.so" for library in versioned):
        return []
    (folder / "libcudart.so").symlink_to(versioned[0])
    return ["-L."]


def _refuse_what_ninja_cannot_quote(folder: Path) -> None:
    """load_inline writes this path into a ninja file and escapes nothing in it but blanks."""
    if found := set("$:|\n") & set(str(folder)):
        raise CacheError(
            f"The kernel cache {cache.root()} has {sorted(found)} in its path, with which nothing "
            "can be compiled there.\n"
            "Remedy: set CONVSMITH_CACHE to a folder without these characters."
        )


def _explained(
    message: str, source: KernelSource, architecture: str, key: str, folder: Path
) -> CacheError | CompilationError:
    """The error for what load_inline says of a failed build."""
    if _DISK_FULL.search(message) or shutil.disk_usage(folder).free < _LEAST_FREE_BYTES:
        return CacheError(
            f"The disk is full: {source.name} could not be compiled in {folder.parent} and "
            f"{tempfile.gettempdir()}.\n"
            "Remedy: free some space (convsmith cache clear), or set CONVSMITH_CACHE, and TMPDIR "
            "for the compiler's own files, to folders on another disk."
        )
    step = _FAILED_STEP.search(message)
    command, log = (step["command"], step["log"]) if step else ("", message)
    kept = cache.keep_failed(key, folder)
    remedies = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, log))
    return CompilationError(
        f"{source.name} was not compiled for {architecture}. Its sources are in {kept}.\n"
        f"Remedy: {next(remedies, _DEFECT)}",
        log=log.replace(str(folder), str(kept)),
        command=command and f"cd {shlex.quote(str(kept))} && {command.replace(f'{folder}/', '')}",
    )


def _not_loadable(name: str, error: ImportError) -> CompilationError:
    return CompilationError(
        f"{name} was compiled but cannot be loaded: {error}.\n"
        "Remedy: see whether nvcc and PyTorch are of the same CUDA (convsmith doctor), and empty "
        "the cache (convsmith cache clear)."
    )
