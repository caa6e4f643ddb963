"""The child process of `export`: does a file that was written define what its problem defines?

    python -m convsmith.kernelbench.rehearsal <problem> <solution> <descriptor>

It answers with one line of JSON on the descriptor: {"error": …, "done": true}, or {"done": true}.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from convsmith.errors import ProblemError
from convsmith.kernelbench.problem import Problem, describe, load_problem, load_solution


def main() -> None:
    """Do what the arguments ask for, then end at once, whatever the files left running."""
    problem, solution, descriptor = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    answer: dict[str, object] = {"done": True}
    try:
        rehearse(problem, solution)
    except ProblemError as error:
        answer["error"] = str(error)
    os.write(descriptor, json.dumps(answer).encode() + b"\n")
    sys.stdout.flush()
    os._exit(0)


def rehearse(problem_file: Path, solution_file: Path) -> None:
    """Compare the two files without running either model.

    Raises:
        ProblemError: the problem cannot be used, its Model has no nn.Conv2d, or the solution is
            not what it should be.
    """
    problem = load_problem(problem_file)
    model = construct(problem, problem.Model)
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        raise ProblemError(f"{problem_file}: Model has no nn.Conv2d, so there is nothing to export")
    solution = load_solution(solution_file)
    new = construct(problem, solution)
    names, expected = (sorted(module.state_dict()) for module in (new, model))
    if names != expected or inspect.signature(solution) != inspect.signature(problem.Model):
        raise ProblemError(
            f"{problem_file}: the exported ModelNew would differ from Model; it has "
            f"{inspect.signature(solution)} and {names}"
        )


def construct(problem: Problem, model: type[nn.Module]) -> nn.Module:
    """A module without memory for its parameters, where its constructor allows that.

    Raises:
        ProblemError: it raised.
    """
    arguments = problem.init_inputs()
    try:
        with torch.device("meta"):
            return model(*arguments)
    except Exception:  # a constructor that computes with its parameters
        try:
            return model(*arguments)
        except Exception as error:
            raise ProblemError(
                f"{problem.path}: {model.__name__}({arguments}) raised {describe(error)}"
            ) from error


if __name__ == "__main__":
    main()
