"""`check` on a GPU: streams, lost contexts, PyTorch's TF32 switch, KernelBench's rule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zoo
from test_check import came, only, verdicts, write
from test_zoo import those

from convsmith.kernelbench.check import check
from convsmith.kernelbench.report import Verdict

pytestmark = pytest.mark.gpu

# More channels than the zoo's problem, so that cuDNN has reason to use tensor cores.
PROBLEM = zoo.PROBLEM.replace("torch.rand(2, 3, 13, 18)", "torch.rand(8, 64, 64, 65)").replace(
    "[3, 6, 3]", "[64, 64, 3]"
)
RULE = "KernelBench's 1e-4 rule"


def rows_of(folder: Path, solution: str):
    report = check(*write(folder, solution, PROBLEM))
    return {row.test: row for row in report.rows}, report


@pytest.mark.parametrize("name", zoo.RIGHT)
def test_right(tmp_path: Path, name: str) -> None:
    rows, report = rows_of(tmp_path, zoo.RIGHT[name])
    assert report.exit_status == 0, report.rows
    assert those(rows, Verdict.NOT_APPLICABLE) == set()
    assert torch.cuda.get_device_name() in report.sentence


def with_tf32(allowed: bool) -> str:
    """SOLUTION whose forward computes in one class whatever PyTorch's switch says."""
    return zoo.SOLUTION.replace(
        zoo.FORWARD_LINE,
        "        before = torch.backends.cudnn.allow_tf32\n"
        f"        torch.backends.cudnn.allow_tf32 = {allowed}\n"
        f"{zoo.FORWARD_LINE}"
        "        torch.backends.cudnn.allow_tf32 = before\n",
    )


def test_exact_float32_is_right_and_fails_the_rule_of_kernelbench(tmp_path: Path) -> None:
    rows, report = rows_of(tmp_path, with_tf32(False))
    assert report.exit_status == 0, report.rows
    assert rows[RULE].beside
    assert rows[RULE].verdict is Verdict.WRONG
    assert "An exact float32 result fails this rule" in rows[RULE].came
    assert rows["accuracy, TF32 class"].measured["torch_rms_error"] > 1e-5


def test_a_solution_that_ignores_the_switch(tmp_path: Path) -> None:
    rows, _ = rows_of(tmp_path, with_tf32(True))
    assert those(rows, Verdict.WRONG) == {"accuracy, float32 class"}
    assert "rounded to 11 bits" in rows["accuracy, float32 class"].came


@pytest.mark.parametrize(
    ("old", "test"), [("y = F.conv2d(", "forward"), ("dx = torch.nn.grad", "backward")]
)
def test_the_wrong_stream(tmp_path: Path, old: str, test: str) -> None:
    line = next(line for line in zoo.SOLUTION.splitlines(keepends=True) if old in line)
    wrong = zoo.SOLUTION.replace(
        line, "        with torch.cuda.stream(torch.cuda.default_stream()):\n    " + line
    )
    rows, _ = rows_of(tmp_path, wrong)
    assert those(rows, Verdict.WRONG) == {"another stream"}, test


def test_a_lost_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends with the GPU's context; the tests that are left go on in another."""
    only(monkeypatch, ["rand", "other batches", "randn"])
    failing = zoo.SOLUTION.replace(
        zoo.APPLY_LINE,
        "        if len(x) == 3:\n"
        "            x = x[torch.full((3,), 1000, device=x.device)]\n" + zoo.APPLY_LINE,
    )
    report = check(*write(tmp_path, failing, PROBLEM))
    found = verdicts(report)
    assert (found["rand"], found["randn"]) == (Verdict.RIGHT, Verdict.RIGHT)
    assert found["other batches"] is Verdict.WRONG
    assert "device-side assert" in came(report, "other batches")


def test_a_write_past_the_end_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = zoo.WRONG["writes one element too many"]
    only(monkeypatch, change.tests)
    report = check(*write(tmp_path, zoo.changed("writes one element too many"), PROBLEM))
    assert "wrote 4 bytes after a tensor of" in came(report, zoo.ENDS)
