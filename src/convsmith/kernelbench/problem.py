"""Problem and solution files: Python files of KernelBench's manner, loaded as isolated modules.

A problem file defines ``Model`` (an ``nn.Module``), ``get_inputs()`` (the arguments of
``forward``) and ``get_init_inputs()`` (the positional arguments of ``Model``). A solution file
defines ``ModelNew``. Loading runs the file: load what you would run.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import Tensor, nn

from convsmith.errors import ProblemError

# A line of every file that `convsmith export` writes: its kernels can run in the simulator.
EXPORT_MARKER = "# Exported by ConvSmith"

# How load_inline begins its message about a failed compilation.
BUILD_FAILED = "Error building extension"

LARGEST_FILE = 16 * 2**20  # bytes; a source file larger than this is a mistake


@dataclass(frozen=True)
class Problem:
    """What a problem file defines.

    Attributes:
        path: the file.
        source: its text.
        Model: the reference, an ``nn.Module`` class.
    """

    path: Path
    source: str
    Model: type[nn.Module]
    _get_inputs: Callable[[], Any]
    _get_init_inputs: Callable[[], Any]

    def inputs(self) -> list[Any]:
        """Fresh arguments of ``forward``: at least one of them a tensor.

        Raises:
            ProblemError: ``get_inputs`` raised, or returned something else.
        """
        inputs = self._arguments("get_inputs", self._get_inputs)
        if not any(isinstance(value, Tensor) for value in inputs):
            raise ProblemError(
                f"{self.path}: get_inputs() must return a list with at least one tensor, it "
                f"returned {_kinds(inputs)}"
            )
        return inputs

    def init_inputs(self) -> list[Any]:
        """The positional arguments of ``Model``.

        Raises:
            ProblemError: ``get_init_inputs`` raised, or returned no list.
        """
        return self._arguments("get_init_inputs", self._get_init_inputs)

    def _arguments(self, name: str, function: Callable[[], Any]) -> list[Any]:
        with _blamed_on(self.path, f"{name}()"):
            values = function()
        if not isinstance(values, (list, tuple)):
            raise ProblemError(
                f"{self.path}: {name}() must return a list, it returned {type(values).__name__}"
            )
        return list(values)


def load_problem(path: Path) -> Problem:
    """Run a problem file and return what it defines.

    Raises:
        ProblemError: the file cannot be read or parsed, raises, or lacks a name.
    """
    module = load_module(path, "convsmith_problem")
    model = _module_class(path, module, "Model")
    functions = [_function(path, module, name) for name in ("get_inputs", "get_init_inputs")]
    return Problem(path, read(path), model, *functions)


def load_solution(path: Path) -> type[nn.Module]:
    """Run a solution file and return its ``ModelNew``.

    Raises:
        ProblemError: the file cannot be read or parsed, raises, or has no ``ModelNew``.
    """
    return _module_class(path, load_module(path, "convsmith_solution"), "ModelNew")


def read(path: Path) -> str:
    """The text of a Python file.

    Raises:
        ProblemError: it is not there, not a file, not text, or far too large.
    """
    try:
        if not path.is_file():
            raise ProblemError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if path.stat().st_size > LARGEST_FILE:
            raise ProblemError(f"{path}: larger than {LARGEST_FILE >> 20} MiB, which no source is")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProblemError(f"{path}: cannot be read: {error}") from error


def parse(path: Path) -> CodeType:
    """The compiled text of a Python file; nothing of it is run and nothing is written.

    Raises:
        ProblemError: it cannot be read or is not Python.
    """
    source = read(path)
    try:
        return compile(ast.parse(source, str(path)), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ProblemError(f"{path}: does not parse: {error.msg} (line {error.lineno})") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ProblemError(f"{path}: does not parse: {describe(error)}") from error


def is_exported(path: Path) -> bool:
    """Whether `convsmith export` wrote this solution file."""
    return any(line.startswith(EXPORT_MARKER) for line in read(path).splitlines())


def load_module(path: Path, name: str) -> ModuleType:
    """Run a Python file as the module ``name``, writing no bytecode beside it.

    The module is entered in ``sys.modules``, where dataclasses and pickling look for it.

    Raises:
        ProblemError: the file cannot be read or parsed, or it raises.
    """
    code = parse(path)
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    with _blamed_on(path, "the file"):
        exec(code, module.__dict__)
    return module


def describe(error: BaseException) -> str:
    """One line about an exception: its type and the first line of its message, shortened.

    Of a failed compilation also the compiler's first error.
    """
    if isinstance(error, SystemExit):
        return f"SystemExit({error.code!r}): it called sys.exit"
    try:
        lines = str(error).strip().splitlines()
    except Exception:
        lines = ["(its message cannot be printed)"]
    if not lines:
        return type(error).__name__
    shown = lines[:1]
    if BUILD_FAILED in lines[0]:  # a long command follows, and then what the compiler said
        errors = [line.strip() for line in lines[1:] if "error:" in line]
        shown = [lines[0].partition(": [")[0], *errors[:1]]
    return f"{type(error).__name__}: {'; '.join(shown)[:400]}"


@contextmanager
def _blamed_on(path: Path, what: str) -> Iterator[None]:
    """Turn whatever the file's code raises, ``sys.exit`` included, into a ProblemError."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ProblemError(f"{path}: {what} raised {describe(error)}") from error


def _module_class(path: Path, module: ModuleType, name: str) -> type[nn.Module]:
    found = _found(path, module, name)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ProblemError(f"{path}: {name} must be a subclass of torch.nn.Module")
    return found


def _function(path: Path, module: ModuleType, name: str) -> Callable[[], Any]:
    found = _found(path, module, name)
    if not callable(found):
        raise ProblemError(f"{path}: {name} must be a function")
    function: Callable[[], Any] = found
    return function


def _found(path: Path, module: ModuleType, name: str) -> object:
    if name not in module.__dict__:
        raise ProblemError(f"{path}: defines no {name}")
    return module.__dict__[name]


def _kinds(values: list[Any]) -> str:
    return f"[{', '.join(type(value).__name__ for value in values)}]"
