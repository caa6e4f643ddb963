"""The example problems have the shapes that their numbers promise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convsmith.kernelbench.problem import load_problem

EXAMPLES = Path(__file__).parents[2] / "examples" / "kernelbench"

# number: input, then (out_channels, kernel_size, stride, padding, dilation, groups) of each layer
LAYERS = {
    50: ((256, 3, 224, 224), [(96, (11, 11), (4, 4), (2, 2), (1, 1), 1)]),
    55: ((8, 64, 512, 1024), [(128, (3, 3), (1, 1), (0, 0), (1, 1), 1)]),
    56: ((8, 64, 512, 256), [(128, (5, 7), (1, 1), (0, 0), (1, 1), 1)]),
    62: ((8, 32, 512, 512), [(64, (5, 9), (1, 1), (0, 0), (1, 1), 1)]),
    63: ((16, 16, 1024, 1024), [(128, (3, 3), (1, 1), (0, 0), (1, 1), 1)]),
    80: ((8, 32, 512, 512), [(64, (5, 9), (1, 1), (2, 4), (2, 3), 1)]),
    82: ((16, 64, 512, 512), [(64, (3, 3), (1, 1), (0, 0), (1, 1), 64)]),
    83: ((64, 8, 512, 512), [(8, (3, 1), (1, 1), (0, 0), (1, 1), 8)]),
    84: ((64, 128, 256, 512), [(128, (3, 3), (1, 1), (0, 0), (1, 1), 128)]),
    85: ((32, 128, 128, 256), [(128, (3, 7), (1, 1), (0, 0), (1, 1), 128)]),
    86: (
        (16, 64, 512, 512),
        [
            (64, (3, 3), (1, 1), (1, 1), (1, 1), 64),
            (128, (1, 1), (1, 1), (0, 0), (1, 1), 1),
        ],
    ),
    87: ((16, 64, 1024, 1024), [(128, (1, 1), (1, 1), (0, 0), (1, 1), 1)]),
}


def test_there_is_a_file_for_each_problem() -> None:
    numbers = sorted(int(path.name.split("_")[0]) for path in EXAMPLES.glob("*.py"))
    assert numbers == sorted(LAYERS)


@pytest.mark.parametrize("number", LAYERS)
def test_shapes(number: int) -> None:
    (path,) = EXAMPLES.glob(f"{number}_*.py")
    problem = load_problem(path)
    input_shape, layers = LAYERS[number]
    with torch.device("meta"):  # some inputs take gigabytes
        (x,) = problem.inputs()
        model = problem.Model(*problem.init_inputs())
    assert tuple(x.shape) == input_shape
    assert x.dtype is torch.float32
    found = [
        (c.out_channels, c.kernel_size, c.stride, c.padding, c.dilation, c.groups)
        for c in model.modules()
        if isinstance(c, torch.nn.Conv2d)
    ]
    assert found == layers
    y = model(x)
    assert y.shape[:2] == (input_shape[0], layers[-1][0])
    # A bias is in AlexNet's layer only.
    assert [name for name, _ in model.named_parameters() if "bias" in name] == (
        ["conv1.bias"] if number == 50 else []
    )
