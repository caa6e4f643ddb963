"""A problem file is exported, checked and timed, with everything real but the clock.

On a machine without a GPU the exported ModelNew runs PyTorch's convolution.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convsmith.bench import problems
from convsmith.bench.contestants import Peer
from convsmith.bench.measure import Conditions
from convsmith.bench.problems import measure_problem
from convsmith.errors import ProblemError
from convsmith.roofline import Ceilings, floor_ms
from convsmith.spec import ConvSpec, Direction, Precision

PROBLEM = Path(__file__).with_name("problem_conv.py")
RATES = Ceilings(4.0, 50.0, 400.0, 750.0, 780.0)
CONDITIONS = Conditions(problems.SUITE, torch.device("cpu"), RATES)


@pytest.mark.usefixtures("bench_on_cpu")
def test_a_row_for_each_class() -> None:
    tf32, float32 = measure_problem(PROBLEM, CONDITIONS)
    assert (tf32["precision"], float32["precision"]) == ("tf32", "float32")
    for row in (tf32, float32):
        assert "fault" not in row
        assert (row["suite"], row["layer"], row["kernel"]) == (
            "problems",
            "problem_conv",
            "exported",
        )
        assert row["ms"] == row["torch_ms"] == row["torch_channels_last_ms"] == 2
        assert 0 < row["rms_error"] == row["torch_rms_error"] < 1e-6
        assert row["extra_bytes"] == 4096


@pytest.mark.usefixtures("bench_on_cpu")
def test_the_floor_is_that_of_the_convolutions() -> None:
    (row,) = measure_problem(PROBLEM, CONDITIONS, [Precision.TF32])
    spec = ConvSpec.of(
        Direction.FORWARD,
        torch.empty(2, 5, 12, 10),
        torch.empty(7, 5, 3, 2),
        True,
        (2, 2),
        (1, 1),
        (1, 1),
        1,
    )
    assert row["floor_ms"] == floor_ms(spec, RATES)


def solution(tmp_path: Path, old: str, new: str) -> Path:
    """A ModelNew made of the problem's Model by one replacement."""
    text = PROBLEM.read_text().replace("class Model(", "class ModelNew(")
    assert old in text
    path = tmp_path / "solution.py"
    path.write_text(text.replace(old, new))
    return path


def export_instead(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `export` writes for any problem."""
    monkeypatch.setattr(
        problems, "export", lambda problem, output, *, force: output.write_text(text)
    )


@pytest.mark.usefixtures("bench_on_cpu")
@pytest.mark.parametrize(
    ("old", "new"),
    [("* self.scale", "* self.scale * 1.01"), ("torch.relu(self.conv(x))", "self.conv(x).log()")],
    ids=["slightly wrong", "NaN"],
)
def test_a_wrong_solution_has_no_time(
    old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_instead(solution(tmp_path, old, new).read_text(), monkeypatch)
    for row in measure_problem(PROBLEM, CONDITIONS):
        assert row["fault"].startswith("inputs: rms error")
        assert "ms" not in row


@pytest.mark.usefixtures("bench_on_cpu")
def test_rounding_operands_is_right_in_the_tf32_class_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of sums of so few terms, one draw in six errs more than a convolution does."""
    rounded = solution(
        tmp_path,
        "self.conv(x)",
        "torch.conv2d(*(to_tf32(one.double()).float() for one in (x, self.conv.weight)), "
        "self.conv.bias, 2, 1)",
    )
    text = "from convsmith.kernelbench.exact import to_tf32\n" + rounded.read_text()
    export_instead(text, monkeypatch)
    for _ in range(20):
        tf32, float32 = measure_problem(PROBLEM, CONDITIONS)
        assert "fault" not in tf32
        assert "fault" in float32


@pytest.mark.usefixtures("bench_on_cpu")
def test_only_the_peers_asked_for_are_timed() -> None:
    conditions = Conditions(problems.SUITE, torch.device("cpu"), RATES, against=(Peer.TORCH,))
    (row,) = measure_problem(PROBLEM, conditions, [Precision.TF32])
    assert "torch_ms" in row
    assert "torch_channels_last_ms" not in row


@pytest.mark.usefixtures("bench_on_cpu")
def test_a_model_that_returns_no_tensor_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PROBLEM.read_text().replace("* self.scale", "* self.scale, None")
    path = tmp_path / "pair.py"
    path.write_text(text)
    export_instead(text.replace("class Model(", "class ModelNew("), monkeypatch)
    with pytest.raises(ProblemError, match=r"must return one tensor to be measured.*tuple"):
        measure_problem(path, CONDITIONS)


@pytest.mark.gpu
def test_a_problem_on_a_gpu() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    conditions = Conditions(problems.SUITE, device, RATES)
    (row,) = measure_problem(PROBLEM, conditions, [Precision.TF32])
    assert 0 < row["ms"] < 10
    assert 0 < row["torch_ms"] < 10
