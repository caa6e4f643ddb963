"""`make gpu-record`: everything that is said of the kernels on a GPU, measured into one file.

    python -m convsmith.bench.gpu_record

runs the GPU tests, compute-sanitizer, the start-up times and the suites, writes the record of this
GPU under benchmarks/results/, and says what keeps it from being complete and right. Whatever
the record already holds of these kernels is kept, so a run that was stopped is continued by the
next one. Where there are several GPUs, all of them take part.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from convsmith.bench import (
    gpu_tests,
    record,
    render,
    run,
    sanitizer,
    selections,
    several_gpus,
    start_up,
    validate,
)
from convsmith.bench.record import Record
from convsmith.bench.selections import Selection
from convsmith.bench.suites import DIRECTIONS, DTYPE
from convsmith.errors import ConvSmithError
from convsmith.spec import Direction, Precision

RESULTS = Path("benchmarks", "results")
TESTS = Path("tests")
SANITIZER_SCRIPT = TESTS / "bench" / "sanitizer_cases.py"

# In this order: what is quick and what stops the rest from counting comes first.
STEPS = ("start-up", "sanitizer", "tests", "suite")

COMPLETE = 0
INCOMPLETE = 1
NOT_DONE = 2
_FAULTS_SHOWN = 30


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; 0 complete and right, 1 not yet, 2 could not be done."""
    try:
        return _run(_parser().parse_args(arguments))
    except ConvSmithError as error:
        print(f"gpu-record: {error}", file=sys.stderr)
        return NOT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m convsmith.bench.gpu_record",
        description="Measure this checkout's kernels on this GPU. Run it in the checkout.",
    )
    add = parser.add_argument
    add("--output", type=Path, help="the record to write or continue (default: by GPU name)")
    add("--merge", type=Path, nargs="+", default=[], help="earlier records, to be continued")
    add("--steps", nargs="*", choices=STEPS, default=STEPS, help="none: only merge (default: all)")
    add("--minutes", type=float, help="begin no layer after so many minutes")
    add("--layers", nargs="+", default=[], help="some of the suites' (default: all)")
    directions = [direction.value for direction in DIRECTIONS]
    add("--directions", nargs="+", choices=directions, default=directions)
    precisions = [precision.value for precision in DTYPE]
    add("--precisions", nargs="+", choices=precisions, default=precisions)
    return parser


def _run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    wanted = selections.narrowed(
        selections.RECORDED,
        options.layers,
        [Direction(name) for name in options.directions],
        [Precision(name) for name in options.precisions],
    )
    output = options.output or _default_output()
    earlier = record.merge_all([*map(record.load, options.merge), *_continuable(output)])
    steps = [step for step in options.steps if _is_open(step, wanted, earlier)]
    if steps and len(several_gpus.gpus()) > 1:
        whole = _on_several_gpus(steps, wanted, earlier, options, output)
    elif steps:
        device = run.require_gpu()
        whole = run.begin(device, earlier)
        for step in steps:
            print(f"gpu-record: {step}", flush=True)
            seconds = options.minutes and 60 * options.minutes - (time.monotonic() - started)
            try:
                if step == "suite":
                    _measure(whole, wanted, device, output, seconds)
                else:
                    _gather(step, whole)
            except ConvSmithError as error:  # the other steps' evidence is worth having
                print(f"gpu-record: {step}: {error}", file=sys.stderr, flush=True)
            record.save(whole, output)
    elif earlier is not None:
        whole = earlier
        record.save(whole, output)
    else:
        raise ConvSmithError("there is nothing to do: no step, and no record to merge")
    return _report(whole, output)


def _on_several_gpus(
    steps: Sequence[str],
    wanted: Sequence[Selection],
    earlier: Record | None,
    options: argparse.Namespace,
    output: Path,
) -> Record:
    """``earlier`` with what all GPUs measured, which is in ``output`` as it comes in.

    Raises:
        ConvSmithError: no process measured anything.
    """
    open_rows = run.open_rows(wanted, earlier)
    layers = list(dict.fromkeys(layer for _, layer, *_ in open_rows))
    narrowing = ["--directions", *options.directions, "--precisions", *options.precisions]
    seconds = options.minutes and 60 * options.minutes
    whole = earlier
    for part in several_gpus.measure(steps, layers, narrowing, seconds):
        whole = part if whole is None else record.merge(whole, part)
        record.save(whole, output)
    if whole is None:
        raise ConvSmithError("no process measured anything: see what they printed")
    return whole


def _default_output() -> Path:
    """benchmarks/results/h200.json for "NVIDIA H200"."""
    name = torch.cuda.get_device_name(run.require_gpu()).removeprefix("NVIDIA ")
    return RESULTS / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.json"


def _continuable(output: Path) -> list[Record]:
    """The record that is in ``output``, unless the kernels have changed since it was taken."""
    if not output.exists():
        return []
    found = record.load(output)
    if validate.staleness(found) is None:
        return [found]
    print(f"gpu-record: {output} is of other kernels and is replaced", flush=True)
    return []


def _is_open(step: str, wanted: Sequence[Selection], earlier: Record | None) -> bool:
    """Whether ``earlier`` lacks the evidence of ``step``, or what it has is not good."""
    if step == "suite":
        return bool(run.open_rows(wanted, earlier))
    if earlier is None:
        return True
    if step == "tests":
        return "tests" not in earlier or earlier["tests"]["failed"] > 0
    if step == "sanitizer":
        return any(earlier.get("sanitizer", {}).get(tool) != 0 for tool in sanitizer.TOOLS)
    return "start_up" not in earlier


def _gather(step: str, whole: Record) -> None:
    if step == "tests":
        whole["tests"] = gpu_tests.run(TESTS)
    elif step == "sanitizer":
        whole["sanitizer"] = sanitizer.run(SANITIZER_SCRIPT)
    else:
        whole["start_up"] = start_up.measure()


def _measure(
    whole: Record,
    wanted: Sequence[Selection],
    device: torch.device,
    output: Path,
    seconds: float | None,
) -> None:
    total = len(run.open_rows(wanted, whole))
    with render.progress(total, render.new_console()) as observe:
        run.fill(whole, wanted, device, output=output, seconds=seconds, observe=observe)


def _report(whole: Record, output: Path) -> int:
    """The table, the other evidence, and what is missing or wrong."""
    render.print_rows(whole["rows"], render.new_console())
    for name in ("tests", "sanitizer", "start_up"):
        print(f"{name}: {whole.get(name)}")
    faults = validate.faults(whole)
    for fault in faults[:_FAULTS_SHOWN]:
        print(f"not complete: {fault}")
    if len(faults) > _FAULTS_SHOWN:
        print(f"not complete: and {len(faults) - _FAULTS_SHOWN} things more")
    print(f"{output}: {'not complete yet' if faults else 'complete and right'}")
    return INCOMPLETE if faults else COMPLETE


if __name__ == "__main__":
    sys.exit(main())
