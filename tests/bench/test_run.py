"""A suite run: what is measured, in which order, written when, and how it is continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from convsmith import choice
from convsmith.bench import digest, record, run
from convsmith.bench.record import Record, Row
from convsmith.bench.run import open_rows, require_gpu
from convsmith.bench.selections import Selection
from convsmith.errors import ConvSmithError
from convsmith.spec import Direction, Precision


def tiny() -> Selection:
    """The suite that bench_on_cpu adds."""
    return Selection("tiny")


def measured(device: torch.device, earlier: Record | None = None, **options: Any) -> Record:
    """The tiny suite, or what ``earlier`` lacks of it."""
    whole = run.begin(device, earlier)
    run.fill(whole, [options.pop("selection", tiny())], device, **options)
    return whole


def titles(rows: list[Row]) -> list[tuple[str, str, str]]:
    return [(row["layer"], row["direction"], row["precision"]) for row in rows]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConvSmithError, match=r"needs an NVIDIA GPU.*doctor"):
        require_gpu()


def test_it_measures_writes_and_reports_every_row(
    bench_on_cpu: torch.device, tmp_path: Path
) -> None:
    observed: list[Row] = []
    output = tmp_path / "gpu.json"
    written = measured(bench_on_cpu, output=output, observe=observed.append)
    assert len(written["rows"]) == 2 * 3 * 2
    assert titles(observed) == titles(written["rows"])
    assert record.load(output) == written
    assert written["gpu"] == "An Invented GPU"
    assert written["kernel_digest"] == digest.kernel_digest()
    assert not any("fault" in row for row in written["rows"])


def test_several_selections_are_measured_in_turn(bench_on_cpu: torch.device) -> None:
    """A layer of two selections gets the rows of both."""
    half = Selection("tiny", ("dense",), (Direction.FORWARD,), (Precision.FLOAT16,))
    whole = run.begin(bench_on_cpu)
    run.fill(whole, [tiny(), half], bench_on_cpu)
    assert titles(whole["rows"])[-2:] == [
        ("depthwise", "grad_weight", "float32"),
        ("dense", "forward", "float16"),
    ]
    assert len(whole["rows"]) == 13
    assert open_rows([tiny(), half], whole) == []


def test_a_run_that_is_cut_short_is_continued(bench_on_cpu: torch.device, tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"

    def interrupt(row: Row) -> None:
        if (row["layer"], row["direction"]) == ("depthwise", "grad_input"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(bench_on_cpu, output=output, observe=interrupt)
    half = record.load(output)
    assert len(half["rows"]) == 8
    observed: list[Row] = []
    whole = measured(bench_on_cpu, output=output, earlier=half, observe=observed.append)
    assert len(observed) == 4
    assert len(whole["rows"]) == 12
    assert [row["run"] for row in whole["rows"]] == [0] * 8 + [1] * 4
    assert open_rows([tiny()], whole) == []


def test_time_boxed(bench_on_cpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(0, 1000, 10))
    monkeypatch.setattr(run.time, "monotonic", lambda: next(seconds))
    short = measured(bench_on_cpu, seconds=25)
    assert titles(short["rows"]) == titles(measured(bench_on_cpu)["rows"])[:4]


def test_a_wrong_row_is_measured_again(bench_on_cpu: torch.device) -> None:
    whole = measured(bench_on_cpu)
    whole["rows"][3]["fault"] = "randn: rms error nan, at most 1e-07"
    assert open_rows([tiny()], whole) == [record.key_of(whole["rows"][3])]
    again = measured(bench_on_cpu, earlier=whole)
    assert "fault" not in again["rows"][3]
    assert [row["run"] for row in again["rows"]].count(1) == 1


def test_rows_of_other_kernels_are_not_continued(
    bench_on_cpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = measured(bench_on_cpu)
    monkeypatch.setattr(run, "kernel_digest", lambda: "0" * 64)
    with pytest.raises(ConvSmithError, match="different kernel_digest"):
        measured(bench_on_cpu, earlier=earlier)


def test_a_layer_too_large_for_the_gpu_is_left_out_and_said(
    bench_on_cpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = run.measure

    def small_memory(layer, *rest):  # type: ignore[no-untyped-def]
        if layer.name == "dense":
            raise torch.cuda.OutOfMemoryError
        return right(layer, *rest)

    monkeypatch.setattr(run, "measure", small_memory)
    only_forward = Selection("tiny", directions=(Direction.FORWARD,))
    with pytest.warns(UserWarning, match=r"dense forward is not measured.*too small"):
        rows = measured(bench_on_cpu, selection=only_forward)["rows"]
    assert {row["layer"] for row in rows} == {"depthwise"}


def test_all_that_may_come_to_run_is_compiled_ahead(
    bench_on_cpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(run, "compile_ahead", lambda plans, device: compiled.extend(plans))
    monkeypatch.setattr(choice, "plans_in_question", lambda spec, *_: [(spec, 1), (spec, 2)])
    rows = measured(bench_on_cpu)["rows"]
    assert len(set(compiled)) == 2 * len(rows)


def test_insisting_on_a_kernel_that_cannot_run_fails(bench_on_cpu: torch.device) -> None:
    with pytest.raises(ConvSmithError, match="cannot run"):
        measured(bench_on_cpu, kernel="direct")


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [None, "direct", "torch"])
def test_a_tiny_real_run(
    kernel: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from convsmith.bench.suites import SUITES, Layer

    layer = Layer("dense", (2, 8, 30, 31), 16, (3, 3), padding=(1, 1))
    monkeypatch.setitem(SUITES, "tiny", (layer,))
    selection = Selection("tiny", precisions=(Precision.TF32,))
    output = tmp_path / "gpu.json"
    written = measured(require_gpu(), selection=selection, output=output, kernel=kernel)
    assert record.load(output) == written
    assert [row.get("fault") for row in written["rows"]] == [None] * 3
    for row in written["rows"]:
        assert 0 < row["ms"] < 10
        assert 0 < row["torch_channels_last_ms"] < 10
        assert row["ms_p20"] <= row["ms"] <= row["ms_p80"]
        assert kernel is None or row["kernel"] == kernel
        assert row["extra_bytes"] >= 0
    assert all(rate > 0 for rate in written["ceilings"].values())
