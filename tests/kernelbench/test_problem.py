"""Loading problem and solution files: what is refused, in one line each, and what is left alone."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
import zoo

from convsmith.errors import ProblemError
from convsmith.kernelbench.problem import (
    EXPORT_MARKER,
    describe,
    is_exported,
    load_problem,
    load_solution,
    parse,
)


def write(folder: Path, source: str) -> Path:
    path = folder / "file.py"
    path.write_text(source)
    return path


def test_a_problem_is_loaded(tmp_path: Path) -> None:
    problem = load_problem(write(tmp_path, zoo.PROBLEM))
    assert problem.init_inputs() == [3, 6, 3]
    assert [tuple(x.shape) for x in problem.inputs()] == [(2, 3, 13, 18)]
    assert problem.Model(*problem.init_inputs()).conv2d.out_channels == 6
    assert problem.source == zoo.PROBLEM


def test_loading_leaves_nothing_behind_but_the_module(tmp_path: Path) -> None:
    path = sys.path[:]
    load_problem(write(tmp_path, zoo.PROBLEM))
    assert [found.name for found in tmp_path.iterdir()] == ["file.py"]
    assert sys.path == path
    assert "file" not in sys.modules


def test_a_loaded_class_can_be_pickled(tmp_path: Path) -> None:
    model = load_solution(write(tmp_path, zoo.SOLUTION))(3, 4, 3)
    copy = pickle.loads(pickle.dumps(model))
    assert torch.equal(copy.conv2d.weight, model.conv2d.weight)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("class Model(nn.Module)", "class Other(nn.Module)", "defines no Model"),
        ("class Model(nn.Module)", "class Model", "Model must be a subclass of torch.nn.Module"),
        ("def get_inputs", "def get_other", "defines no get_inputs"),
        ("def get_init_inputs():\n    return", "get_init_inputs =", "must be a function"),
        ("import torch\n", "import torch\n1 / 0\n", "the file raised ZeroDivisionError"),
        (
            "import torch\n",
            "import torch, sys\nsys.exit(0)\n",
            "SystemExit(0): it called sys.exit",
        ),
        ("import torch\n", "import torch, nothing_such\n", "No module named 'nothing_such'"),
    ],
)
def test_a_problem_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = write(tmp_path, zoo.PROBLEM.replace(old, new))
    with pytest.raises(ProblemError, match=r"file\.py: ") as refusal:
        load_problem(path)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("None", "must return a list, it returned NoneType"),
        ("torch.rand(2)", "must return a list, it returned Tensor"),
        ("[]", "at least one tensor, it returned []"),
        ("[1, 'x']", "at least one tensor, it returned [int, str]"),
        ("1 / 0", "get_inputs() raised ZeroDivisionError: division by zero"),
    ],
)
def test_nonsense_of_get_inputs(tmp_path: Path, returned: str, words: str) -> None:
    source = zoo.PROBLEM.replace("[torch.rand(2, 3, 13, 18)]", returned)
    problem = load_problem(write(tmp_path, source))
    with pytest.raises(ProblemError) as refusal:
        problem.inputs()
    assert words in str(refusal.value)


def test_nonsense_of_get_init_inputs(tmp_path: Path) -> None:
    problem = load_problem(write(tmp_path, zoo.PROBLEM.replace("[3, 6, 3]", "{'x': 1}")))
    with pytest.raises(ProblemError, match=r"get_init_inputs\(\) must return a list"):
        problem.init_inputs()


def test_a_solution_without_its_class(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="defines no ModelNew"):
        load_solution(write(tmp_path, zoo.PROBLEM))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="no such file"):
        parse(tmp_path / "nothing.py")
    with pytest.raises(ProblemError, match="not a file"):
        parse(tmp_path)
    (tmp_path / "latin.py").write_bytes(b"# \xe9\xff")
    with pytest.raises(ProblemError, match="cannot be read"):
        parse(tmp_path / "latin.py")
    with (tmp_path / "huge.py").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ProblemError, match="larger than 16 MiB"):
        parse(tmp_path / "huge.py")


@pytest.mark.parametrize("source", ["def f(:", "x = 1\0", "(" * 10_000, "-" * 100_000 + "1"])
def test_files_that_do_not_parse(tmp_path: Path, source: str) -> None:
    with pytest.raises(ProblemError, match="does not parse") as refusal:
        parse(write(tmp_path, source))
    assert "\n" not in str(refusal.value)


def test_exported_files_are_known_by_a_line_of_theirs(tmp_path: Path) -> None:
    assert is_exported(write(tmp_path, f"{EXPORT_MARKER} 1.0.\nimport torch\n"))
    assert not is_exported(write(tmp_path, zoo.SOLUTION))


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError


def test_exceptions_are_described_in_one_line() -> None:
    assert describe(ValueError("first\nsecond")) == "ValueError: first"
    assert describe(ValueError()) == "ValueError"
    assert describe(Unprintable()) == "Unprintable: (its message cannot be printed)"
    assert len(describe(ValueError("x" * 10_000))) < 500
    build = "Error building extension 'm': [1/2] nvcc m.cu\nFAILED: m.o\nm.cu(3): error: no x\n"
    described = "RuntimeError: Error building extension 'm'; m.cu(3): error: no x"
    assert describe(RuntimeError(build)) == described
    assert describe(SystemExit(3)) == "SystemExit(3): it called sys.exit"
