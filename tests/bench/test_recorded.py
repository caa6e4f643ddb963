"""What is in benchmarks/results/: complete, right, and of the kernels as they are now.

None of it needs a GPU. A failure here means that something was changed and not measured again: run
`make gpu-record` on the GPU in question and commit what it writes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from convsmith.bench import record
from convsmith.bench.validate import faults, staleness

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RECORDS = sorted({*RESULTS.glob("*.json"), RESULTS / "h100-80gb-hbm3.json"})


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_record_is_of_these_kernels(path: Path) -> None:
    reason = staleness(record.load(path))
    assert reason is None, reason


# What the record of the H100 is not complete and right in. The next record has to do without each.
#
# - A test of a small problem in the TF32 class: which of its results are within an absolute bound
#   on the rms error of a few hundred values is chance.
# - Input gradients of the float32 class. On operands of a wide range the largest error, of results
#   that are one product or two, is up to 1.7 times cuDNN's: operands have 22 bits, of cuDNN's 24.
#   In three grouped ones, of sums of a few terms, the rms error is up to 1.2 times cuDNN's.
# - Two depthwise weight gradients, whose largest error on such operands is up to 1.12 times
#   cuDNN's: which of the two is larger differs from draw to draw.
KNOWN_FAULTS = {
    "h100-80gb-hbm3": {
        "GPU tests: 1224 passed, 1 failed",
        "core kb50 grad_input float32 nchw: wrong: wide: largest error 2.35e-07, at most 2.09e-07",
        "core kb55 grad_input float32 nchw: wrong: wide: largest error 3.2e-07, at most 2.15e-07",
        "core kb56 grad_input float32 nchw: wrong: wide: largest error 2.66e-07, at most 2.63e-07",
        "core kb62 grad_input float32 nchw: wrong: wide: largest error 2.79e-07, at most 2.27e-07",
        "core rn50_l1_3x3 grad_input float32 nchw: "
        "wrong: wide: largest error 3.15e-07, at most 2.02e-07",
        "core rn50_l2_3x3s2 grad_input float32 nchw: "
        "wrong: wide: largest error 2.34e-07, at most 1.54e-07",
        "dense c_b32_c432k432_28_k3_s2_g9 grad_input float32 nchw: "
        "wrong: rand: rms error 8.6e-08, at most 7.16e-08",
        "dense c_b64_c128k32_28_k3 grad_input float32 nchw: "
        "wrong: wide: largest error 2.8e-07, at most 1.66e-07",
        "dense c_b8_c1024k1024_14_k3_g32 grad_input float32 nchw: "
        "wrong: rand: rms error 6.71e-08, at most 5.78e-08",
        "dense c_b8_c32k32_81x201_k11_s2x1 grad_input float32 nchw: "
        "wrong: wide: largest error 2.4e-07, at most 1.93e-07",
        "dense c_b8_c90k60_29_k3_s1x3_g6 grad_input float32 nchw: "
        "wrong: rand: rms error 5.24e-08, at most 4.57e-08",
        "depthwise dw_b32_c768_7_k7 grad_weight float32 nchw: "
        "wrong: wide: largest error 1.23e-07, at most 1.16e-07",
        "depthwise dw_b8_c256_28_k29 grad_weight float32 nchw: "
        "wrong: wide: largest error 1.42e-07, at most 1.27e-07",
    }
}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_record_is_complete_and_right(path: Path) -> None:
    found = faults(record.load(path))
    assert len(found) == len(set(found))
    assert set(found) == KNOWN_FAULTS.get(path.stem, set())
