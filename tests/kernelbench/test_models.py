"""Problems that are more than one convolution: every trial applies to them or says why not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_zoo import rows_of, those

from convsmith.kernelbench.report import Verdict

NETWORK = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return torch.relu(x + self.layers(x))


class Model(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 5, stride=2, padding=2)
        self.block = Block(channels)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x):
        x = self.block(torch.relu(self.stem(x)))
        return self.head(self.drop(x.mean((2, 3)))), x


def get_inputs():
    return [torch.rand(4, 3, 16, 18)]


def get_init_inputs():
    return [4, 10]
"""

FIXED_SIZE = NETWORK.replace("nn.Linear(channels, classes)", "nn.Linear(72 * channels, classes)")
FIXED_SIZE = FIXED_SIZE.replace("x.mean((2, 3))", "x.flatten(1)")

TWO_INPUTS = """
import torch
from torch import nn
import torch.nn.functional as F


class Model(nn.Module):
    def forward(self, x, scale, weight, places):
        return F.conv2d(x, weight, padding=1)[:, places] * scale


def get_inputs():
    return [torch.rand(2, 3, 9, 9), 0.5, torch.rand(4, 3, 3, 3), torch.tensor([2, 0])]


def get_init_inputs():
    return []
"""

HALF = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv2d = nn.Conv2d(3, 4, 3, dtype=torch.bfloat16)

    def forward(self, x):
        return self.conv2d(x)


def get_inputs():
    return [torch.rand(2, 3, 9, 9, dtype=torch.bfloat16)]


def get_init_inputs():
    return []
"""


def solution_of(problem: str) -> str:
    return problem.replace("class Model(", "class ModelNew(")


@pytest.mark.parametrize(
    ("problem", "not_applicable"),
    [
        (NETWORK, {"another stream", "other constructor arguments"}),
        (FIXED_SIZE, {"another stream", "other constructor arguments"}),
        (TWO_INPUTS, {"another stream", "other constructor arguments", "changed weights"}),
        (HALF, {"another stream", "other constructor arguments", "accuracy, TF32 class"}),
    ],
    ids=["network", "fixed size", "two inputs", "half precision"],
)
def test_model_itself_is_right(tmp_path: Path, problem: str, not_applicable: set[str]) -> None:
    rows = rows_of(tmp_path, solution_of(problem), problem=problem)
    assert those(rows, Verdict.WRONG) == set(), rows
    assert those(rows, Verdict.UNKNOWN) == set(), rows
    assert those(rows, Verdict.NOT_APPLICABLE) == not_applicable


@pytest.mark.parametrize(
    ("old", "new", "tests"),
    [
        ("BatchNorm2d(channels)", "BatchNorm2d(channels, momentum=0.2)", {"training mode"}),
        ("x + self.layers(x)", "self.layers(x)", {"randn", "zeros", "training mode"}),
        (
            "x.mean((2, 3)))), x",
            "x.mean((2, 3)))), x.detach()",
            {"gradient of the input", "gradient of stem.weight"},
        ),
        ("x.mean((2, 3)))), x", "x.mean((2, 3))))", {"randn", "the problem's inputs"}),
    ],
)
def test_a_wrong_part_is_found(tmp_path: Path, old: str, new: str, tests: set[str]) -> None:
    assert old in NETWORK
    rows = rows_of(tmp_path, solution_of(NETWORK).replace(old, new), problem=NETWORK)
    assert tests <= those(rows, Verdict.WRONG)
    assert those(rows, Verdict.UNKNOWN) == set()


def test_rounding_noise_is_judged_as_noise(tmp_path: Path) -> None:
    """The gradient of a bias before a batch norm is nothing but noise; another sum has other."""
    summed = solution_of(NETWORK).replace(
        "        return torch.relu(x + self.layers(x))",
        "        convolution = self.layers[3]\n"
        "        y = self.layers[2](self.layers[1](self.layers[0](x)))\n"
        "        w = convolution.weight\n"
        "        y = torch.nn.functional.conv2d(y[:, :2], w[:, :2], None, 1, 1)"
        " + torch.nn.functional.conv2d(y[:, 2:], w[:, 2:], convolution.bias, 1, 1)\n"
        "        return torch.relu(x + self.layers[4](y))",
    )
    rows = rows_of(tmp_path, summed, problem=NETWORK)
    assert those(rows, Verdict.WRONG) == set(), rows


def test_a_problem_that_does_not_work_cannot_be_decided(tmp_path: Path) -> None:
    for old, new, words in (
        ("[torch.rand(", "[1 / 0, torch.rand(", "get_inputs() raised ZeroDivision"),
        ("self.conv2d(x)", "self.conv(x)", "Model raised AttributeError"),
        ("nn.Conv2d(3, 4, 3", "nn.Conv2d(5, 4, 3", "Model raised RuntimeError"),
    ):
        assert old in HALF
        problem = HALF.replace(old, new)
        rows = rows_of(tmp_path, solution_of(HALF), problem=problem)
        assert those(rows, Verdict.UNKNOWN) == {"the problem file"}
        assert words in rows["the problem file"].came


def test_a_solution_that_cannot_be_used(tmp_path: Path) -> None:
    for old, new, test, words in (
        ("class ModelNew(", "class Other(", "the solution file", "defines no ModelNew"),
        ("import torch\n", "import torch\n1 / 0\n", "the solution file", "ZeroDivisionError"),
        (
            "import torch\n",
            "import torch\ntorch.set_grad_enabled(False)\n",
            "the solution file",
            "changes PyTorch's defaults from torch.float32 on cpu with gradients to torch.float32",
        ),
        ("super().__init__()", "1 / 0", "ModelNew", "ZeroDivisionError: division by zero (line 8"),
    ):
        rows = rows_of(tmp_path, solution_of(HALF).replace(old, new), problem=HALF)
        assert those(rows, Verdict.WRONG) == {test}
        assert words in rows[test].came
        torch.set_grad_enabled(True)


def test_no_compiler_is_not_the_fault_of_the_solution(tmp_path: Path) -> None:
    missing = "raise OSError('CUDA_HOME environment variable is not set. Please set it')\n"
    rows = rows_of(tmp_path, missing + solution_of(HALF), problem=HALF)
    assert those(rows, Verdict.UNKNOWN) == {"the solution file"}


def test_a_model_that_does_not_run_in_float64_cannot_be_decided(tmp_path: Path) -> None:
    problem = HALF.replace("self.conv2d(x)", "self.conv2d(x.bfloat16())")
    rows = rows_of(tmp_path, solution_of(problem), problem=problem)
    assert "Model does not run in float64" in rows["randn"].came
    assert {"rand", "randn", "the problem's inputs"} <= those(rows, Verdict.UNKNOWN)


def test_integers_are_compared_exactly(tmp_path: Path) -> None:
    problem = HALF.replace("self.conv2d(x)", "self.conv2d(x).argmax(1)")
    rows = rows_of(tmp_path, solution_of(problem), problem=problem)
    assert those(rows, Verdict.WRONG) == set()
    assert rows["randn"].verdict is Verdict.RIGHT
    solution = solution_of(problem).replace("argmax(1)", "argmin(1)")
    assert "randn" in those(rows_of(tmp_path, solution, problem=problem), Verdict.WRONG)
