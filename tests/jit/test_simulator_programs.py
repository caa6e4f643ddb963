"""How the simulator's programs are compiled, kept, shared between threads and processes, ended."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from child_process import StartChild
from processes import is_running, wait_until_ended
from torch import Tensor

from convsmith.errors import (
    CompilationDisabledError,
    CompilationError,
    SimulatorError,
    ToolchainError,
)
from convsmith.jit import cache, simulator
from convsmith.jit.simulator import Buffer
from convsmith.kernels.source import KernelSource

ADD_ONE = Path(__file__).parent / "kernels" / "add_one.cu"
SOURCE = KernelSource("add_one", ADD_ONE.read_text())

# In a child process: `add_one(n)` runs the kernel on n numbers and prints its program's id.
ADD_ONE_IN_A_CHILD = f"""
import os, struct, sys
import torch
from convsmith.jit import simulator
from convsmith.kernels.source import KernelSource

source = KernelSource("add_one", open({str(ADD_ONE)!r}).read())

def add_one(count):
    numbers = torch.arange(count, dtype=torch.float32)
    buffer = simulator.Buffer(numbers.data_ptr(), 4 * count, True)
    simulator.run(source, struct.pack("q", count), [buffer])
    assert torch.equal(numbers, torch.arange(count) + 1.0), numbers
    print(simulator._servers[source]._process.pid, flush=True)
"""


def add_one(numbers: Tensor, source: KernelSource = SOURCE) -> None:
    given = Buffer(numbers.data_ptr(), 4 * numbers.numel(), writable=True)
    simulator.run(source, struct.pack("q", numbers.numel()), [given])


def works(source: KernelSource = SOURCE) -> bool:
    numbers = torch.randn(100)
    expected = numbers + 1
    add_one(numbers, source)
    return torch.equal(numbers, expected)


def program_of(source: KernelSource = SOURCE) -> int:
    """The id of the process that serves the kernel."""
    return simulator._servers[source]._process.pid


@pytest.fixture
def no_programs() -> None:
    """As in a process that has not simulated anything."""
    simulator._end_all()


def test_one_program_serves_many_launches() -> None:
    assert works()
    program = program_of()
    assert works()
    assert program_of() == program


def test_a_program_that_was_killed_is_started_again() -> None:
    assert works()
    program = program_of()
    os.kill(program, signal.SIGKILL)
    wait_until_ended(program, 20)
    assert works()


def test_only_so_many_programs_are_kept(no_programs: None) -> None:
    sources = [KernelSource(f"add_one_{i}", SOURCE.cuda) for i in range(9)]
    assert works(sources[0])
    first = program_of(sources[0])
    for source in sources[1:]:
        # The same program under another name: nothing is compiled.
        simulator._servers[source] = simulator.Server(simulator.executable(sources[0]))
        assert works(source)
    assert len(simulator._servers) == 8
    assert not is_running(first)
    assert works(sources[0])


def test_threads_take_turns() -> None:
    failures: list[int] = []

    def many(seed: int) -> None:
        for count in range(seed, 400, 7):
            numbers = torch.full((count,), float(seed))
            add_one(numbers)
            if not (numbers == seed + 1).all():
                failures.append(count)

    threads = [threading.Thread(target=many, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_forked_process_starts_a_program_of_its_own(start_child: StartChild) -> None:
    child = start_child(
        ADD_ONE_IN_A_CHILD
        + """
add_one(10)
if os.fork() == 0:
    for _ in range(20):
        add_one(30)
    sys.exit()
for _ in range(20):
    add_one(20)
assert os.wait()[1] == 0
"""
    )
    parent, *others = child.output().split()
    assert others.count(parent) == 20
    assert len(set(others)) == 2


def test_no_program_outlives_its_process(start_child: StartChild) -> None:
    ended = start_child(ADD_ONE_IN_A_CHILD + "add_one(10)")
    wait_until_ended(int(ended.output()), 20)

    killed = start_child(ADD_ONE_IN_A_CHILD + "import time; add_one(10); time.sleep(120)")
    assert killed.stdout is not None
    program = int(killed.stdout.readline())
    assert is_running(program)
    killed.kill()
    wait_until_ended(program, 20)


def test_an_interrupted_launch_leaves_nothing_behind(
    no_programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert works()
    program = program_of()

    def interrupt(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(simulator.Server, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            add_one(torch.zeros(10))
    assert not is_running(program)
    assert works()


def test_a_preloaded_library_does_not_stop_the_sanitizers(
    no_programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libm.so.6")
    assert works()


def test_a_program_that_does_not_start_says_why(
    no_programs: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho Shadow memory range interleaves\nexit 1\n")
    monkeypatch.setattr(simulator, "executable", lambda source: program)
    with pytest.raises(SimulatorError, match=r"cannot be run: Permission denied.\nRemedy: "):
        works()
    program.chmod(0o700)
    with pytest.raises(SimulatorError, match=r"does not start:\nShadow memory .*\n+Remedy: if it"):
        works()


def test_a_failing_start_is_tried_again(
    no_programs: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where address randomisation has put something in AddressSanitizer's way."""
    real, program = simulator.executable(SOURCE), tmp_path / "program"
    program.write_text(f"#!/bin/sh\nmkdir {tmp_path}/once 2>/dev/null && exit 1\nexec '{real}'\n")
    program.chmod(0o700)
    monkeypatch.setattr(simulator, "executable", lambda source: program)
    assert works()


def test_a_kernel_is_compiled_once(cache_folder: Path, no_programs: None) -> None:
    assert works()
    keys = {entry.path.name for entry in cache.list_entries()}
    names = sorted(key.rpartition("_")[0] for key in keys)
    assert names == ["add_one", "simulator", "simulator_header"]
    simulator._end_all()
    built = {entry.path.name: entry.built_at for entry in cache.list_entries()}
    assert works()
    assert {entry.path.name: entry.built_at for entry in cache.list_entries()} == built


def test_a_kernel_that_does_not_compile(cache_folder: Path) -> None:
    source = KernelSource("wrong", SOURCE.cuda.replace("+= 1", "+= one"))
    with pytest.raises(CompilationError) as caught:
        works(source)
    error = caught.value
    assert "'one' was not declared in this scope" in error.log
    folder = cache_folder / "failed"
    assert [path.name.rpartition("_")[0] for path in folder.iterdir()] == ["wrong"]
    assert error.command.startswith(f"cd '{folder}")
    assert os.system(f"{error.command} 2>/dev/null") != 0  # runs again, and fails again
    assert "kernel.cu" in [path.name for path in next(folder.iterdir()).iterdir()]


def test_no_compile_mode(
    cache_folder: Path, no_programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSMITH_NO_COMPILE", "1")
    with pytest.raises(CompilationDisabledError, match="add_one_"):
        works()


def test_no_compiler(no_programs: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ToolchainError, match=r"g\+\+ and c\+\+ are not on PATH.\n.*apt install g"):
        works()
    monkeypatch.setenv("CXX", "icpc")
    with pytest.raises(ToolchainError, match=r"icpc is not on PATH.\n.*apt install g"):
        works()


def a_compiler(folder: Path, script: str) -> str:
    """A program that answers --version, and else does what ``script`` says."""
    compiler = folder / "a compiler"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "a compiler 1.0" && exit\n{script}\n'
    )
    compiler.chmod(0o700)
    return str(compiler)


def test_the_precompiled_header_is_taken(cache_folder: Path, no_programs: None) -> None:
    """GCC marks what it takes with an exclamation mark, and with x what does not suit it."""
    assert works()
    (kernel,) = cache.list_entries("add_one_")
    if not kernel.build.details["host compiler"].startswith("g++"):
        pytest.skip("other compilers read the header itself")
    (header,) = cache.list_entries("simulator_header_")
    command = f"cd '{kernel.path}' && {kernel.build.command} -H -fsyntax-only"
    said = subprocess.run(command, shell=True, capture_output=True, text=True).stderr
    assert f"! {header.artifact}" in said.splitlines()


def test_a_compiler_that_precompiles_nothing(
    cache_folder: Path, no_programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'case " $* " in *" c++-header "*) exit 1;; esac; exec c++ "$@"'
    monkeypatch.setenv("CXX", a_compiler(cache_folder.parent, script))
    assert works()
    (header,) = cache.list_entries("simulator_header_")
    assert header.build.artifact == "simulator.h"


@pytest.mark.parametrize(
    "message",
    [
        "/usr/bin/ld: cannot find -lasan: No such file or directory",
        "/usr/bin/ld: cannot find /usr/lib64/libubsan.so.1.0.0",
        "memory.cpp:3:10: fatal error: sanitizer/asan_interface.h: No such file or directory",
        "g++: error: unrecognized argument to '-fsanitize=' option: 'address'",
    ],
)
def test_a_compiler_without_sanitizers(
    cache_folder: Path, no_programs: None, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    compiler = a_compiler(cache_folder.parent, f'echo "{message}" >&2; exit 1')
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(ToolchainError, match=r"has no AddressSanitizer[^$]*apt install g\+\+"):
        works()


def test_a_compiler_that_does_not_run(
    no_programs: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(ToolchainError, match=r"compiler does not run: .*\nRemedy: "):
        works()
