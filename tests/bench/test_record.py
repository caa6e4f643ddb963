"""Records are written whole, merged and continued."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest

from convsmith.bench.record import IDENTITY, Record, enter, load, merge, merge_all, save
from convsmith.bench.validate import faults
from convsmith.errors import ConvSmithError


def test_what_is_saved_is_what_is_loaded(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "results" / "gpu.json"
    save(record, path)
    assert load(path) == record
    assert json.loads(path.read_text()) == record
    assert list(path.parent.iterdir()) == [path]


def test_a_record_without_rows_is_saved(record: Record, tmp_path: Path) -> None:
    record["rows"] = []
    save(record, tmp_path / "gpu.json")
    assert load(tmp_path / "gpu.json") == record


def test_a_row_is_a_line(record: Record, tmp_path: Path) -> None:
    save(record, tmp_path / "gpu.json")
    lines = (tmp_path / "gpu.json").read_text().splitlines()
    assert sum('"layer"' in line for line in lines) == len(record["rows"])


def test_a_failed_write_leaves_the_old_record(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gpu.json"
    save(record, path)
    before = path.read_bytes()

    def disk_full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save({**record, "gpu": "another"}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"gpu": "x"}'])
def test_what_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(ConvSmithError, match="benchmark record"):
        load(path)
    with pytest.raises(ConvSmithError, match="cannot be read"):
        load(tmp_path / "missing.json")


def split(record: Record) -> tuple[Record, Record]:
    """Two records that hold a part each, of two runs on slightly different machines."""
    first, second = copy.deepcopy(record), copy.deepcopy(record)
    first["rows"], second["rows"] = first["rows"][:70], second["rows"][70:]
    del first["tests"], first["sanitizer"], second["start_up"]
    second["runs"][0]["seed"] = 2
    second["date"] = "2026-02-01"
    return first, second


def test_two_parts_make_a_whole(record: Record) -> None:
    first, second = split(record)
    assert faults(first)
    assert faults(second)
    whole = merge(first, second)
    assert faults(whole) == []
    assert whole["date"] == "2026-02-01"
    assert [run["seed"] for run in whole["runs"]] == [1, 2]
    assert {row["run"] for row in whole["rows"][:70]} == {0}
    assert {row["run"] for row in whole["rows"][70:]} == {1}


def test_merging_changes_neither_part(record: Record) -> None:
    first, second = split(record)
    before = copy.deepcopy((first, second))
    merge(first, second)
    assert (first, second) == before


def test_a_row_measured_again_replaces_the_earlier_one(record: Record) -> None:
    first, second = split(record)
    again = copy.deepcopy(first["rows"][0])
    again["torch_ms"] *= 2
    second["rows"].append(again)
    whole = merge(first, second)
    assert len(whole["rows"]) == len(record["rows"])
    assert whole["rows"][0]["torch_ms"] == again["torch_ms"]
    assert whole["rows"][0]["run"] == 1


def test_what_both_went_on_from_counts_once_and_never_for_more_than_what_came_after(
    record: Record,
) -> None:
    """Two workers that measure some rows of a record again, each into a copy of its own."""
    workers = [copy.deepcopy(record), copy.deepcopy(record)]
    for seed, worker in enumerate(workers, start=2):
        worker["runs"].append({**record["runs"][0], "started": "2026-02-01", "seed": seed})
        worker["rows"][seed].update(run=1, torch_ms=float(seed))
    whole = merge_all([record, *workers])
    assert whole is not None
    assert [run["seed"] for run in whole["runs"]] == [1, 2, 3]
    assert [(row["run"], row["torch_ms"]) for row in whole["rows"][2:4]] == [(1, 2.0), (2, 3.0)]
    assert {row["run"] for row in whole["rows"][4:]} == {0}


def test_merging_is_associative(record: Record) -> None:
    first, rest = split(record)
    second, third = copy.deepcopy(rest), copy.deepcopy(rest)
    second["rows"], third["rows"] = rest["rows"][:50], rest["rows"][50:]
    assert merge(merge(first, second), third) == merge(first, merge(second, third))
    assert merge_all([first, second, third]) == merge(merge(first, second), third)
    assert merge_all([]) is None


def test_what_was_wrong_before_is_kept(record: Record) -> None:
    """A row that is measured until it is right has been wrong."""
    first, second = copy.deepcopy(record), copy.deepcopy(record)
    second["runs"] = [{**second["runs"][0], "started": "2026-03-01T12:00:00+00:00", "seed": 2}]
    first["rows"][0]["fault"] = "largest"
    third = merge(first, second)
    assert third["rows"][0]["earlier_faults"] == ["largest"]
    assert "fault" not in third["rows"][0]
    assert all("earlier_faults" not in row for row in third["rows"][1:])
    assert merge(third, second)["rows"] == merge(first, third)["rows"] == third["rows"]
    again = copy.deepcopy(record["rows"][0])
    enter(third, again)
    assert again["earlier_faults"] == ["largest"]
    third["rows"][0]["fault"] = "rms"
    last = copy.deepcopy(record["rows"][0])
    enter(third, last)
    assert last["earlier_faults"] == ["largest", "rms"]


@pytest.mark.parametrize("name", IDENTITY, ids="another {}".format)
def test_records_of_different_things_do_not_merge(name: str, record: Record) -> None:
    other = copy.deepcopy(record)
    other[name] = "another"  # type: ignore[literal-required]
    with pytest.raises(ConvSmithError, match=f"different {name}: .*measure again"):
        merge(record, other)
