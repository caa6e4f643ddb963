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


# What the record of the H100 is not right in. The next record has to do without.
#
# PyTorch takes either of two cuDNN algorithms here, which are about as fast: its error is 6.4e-08
# or 42e-08 in rms. That of the implicit_gemm family is 7.4e-08 both times. All products are
# positive, and the tensor cores truncate sums of 32 pixels.
KNOWN_FAULTS = {
    "h100-80gb-hbm3": [
        "dense c_b16_c384k384_8_k1x3 grad_weight float32 nchw: "
        "wrong: rand: rms error 7.4e-08, at most 6.44e-08",
    ]
}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_record_is_complete_and_right(path: Path) -> None:
    assert faults(record.load(path)) == KNOWN_FAULTS.get(path.stem, [])


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_what_was_wrong_before_was_so_by_chance(path: Path) -> None:
    """Errors in rms are no chance: a row that has been wrong in them is not to be right later.

    A largest error is of one element, and chance. Where results are one product or two, cuDNN's own
    is little more than a rounding.
    """
    rows = record.load(path)["rows"]
    right = (row for row in rows if "fault" not in row)
    before = [fault for row in right for fault in row.get("earlier_faults", ())]
    assert all("largest error" in fault for fault in before)
    assert len(before) < 0.03 * len(rows)
