"""KernelBench-style problem files, measured: Model against the ModelNew that `export` writes.

A row has the form of a suite's; its layer is the file's name. What is timed is the forward pass at
the problem's own size, without gradients.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from convsmith import timing
from convsmith.bench import accuracy, memory
from convsmith.bench.accuracy import Errors, ErrorSums
from convsmith.bench.contestants import Peer
from convsmith.bench.measure import Conditions
from convsmith.bench.record import Row
from convsmith.bench.rows import Pair, enter_times, judged_row
from convsmith.bench.suites import PRECISIONS, Layout
from convsmith.bench.switches import cudnn_autotuning, precision_class
from convsmith.errors import ProblemError
from convsmith.kernelbench.exact import Exactly, Rounding, to_tf32
from convsmith.kernelbench.export import export
from convsmith.kernelbench.problem import Problem, load_problem, load_solution
from convsmith.roofline import floor_ms
from convsmith.spec import ConvSpec, Direction, Precision

SUITE = "problems"
EXPORTED = "exported"  # what stands for the kernel in a row

# What a problem's errors are measured on: the inputs that it draws itself.
OWN_INPUTS = "inputs"


def measure_problem(
    path: Path, conditions: Conditions, precisions: Sequence[Precision] = PRECISIONS
) -> list[Row]:
    """A row for each of ``precisions``.

    Raises:
        ProblemError: the file cannot be used, or its Model does not return one tensor.
        ConvSmithError: it cannot be exported, or the exported file cannot be used.
    """
    problem = load_problem(path)
    with tempfile.TemporaryDirectory(prefix="convsmith-") as folder, cudnn_autotuning():
        exported = Path(folder, f"{path.stem}_new.py")
        export(path, exported, force=False)
        measurement = _Measurement(problem, load_solution(exported), conditions)
        return [measurement.row(precision) for precision in precisions]


class _Measurement:
    def __init__(self, problem: Problem, solution: type[nn.Module], conditions: Conditions) -> None:
        self._problem = problem
        self._conditions = conditions
        self._device = conditions.device
        self._inputs = self._on_device(problem.inputs())
        seed = torch.seed() % 2**32
        self._model, self._solution = (
            self._build(which, seed) for which in (problem.Model, solution)
        )

    def _on_device(self, values: Sequence[Any]) -> list[Any]:
        return [one.to(self._device) if isinstance(one, Tensor) else one for one in values]

    def _build(self, which: type[nn.Module], seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return which(*self._problem.init_inputs()).to(self._device)

    def row(self, precision: Precision) -> Row:
        """One row: right and timed, or wrong."""
        with precision_class(precision), torch.no_grad():
            key = (
                SUITE,
                self._problem.path.stem,
                Direction.FORWARD.value,
                precision.value,
                Layout.NCHW.value,
            )
            errors = {OWN_INPUTS: self._errors(precision)}
            row = judged_row(key, EXPORTED, self._floor_ms(precision), None, errors, OWN_INPUTS)
            if "fault" in row:
                return row
            calls = self._calls()
            enter_times(row, timing.alternate(calls, timing.CudaClock(self._device)))
            row["extra_bytes"] = memory.extra_bytes(calls["ms"], self._device)
            row["torch_extra_bytes"] = memory.extra_bytes(calls["torch_ms"], self._device)
        return row

    def _errors(self, precision: Precision) -> Pair:
        """ModelNew's and Model's errors on the problem's inputs, against Model in float64."""
        theirs = self._tensor_from(self._model)
        accuracy.poison(theirs.shape, theirs.dtype, self._device)
        ours = self._tensor_from(self._solution)
        exact = self._exactly()
        pair = Pair(self._errors_of(ours, exact), self._errors_of(theirs, exact))
        del ours, theirs
        fault = accuracy.fault(precision, pair.ours, pair.theirs, same_function=False)
        if precision is Precision.TF32 and fault is not None:
            # Only where it decides, for it takes as much time and memory again.
            pair = replace(pair, rounded=self._errors_of(self._exactly(to_tf32), exact))
        return pair

    def _exactly(self, rounding: Rounding | None = None) -> Tensor:
        """Model in float64, of operands that are rounded or not."""
        double = [_double(value) for value in self._inputs]
        with Exactly(rounding):
            exact: Tensor = copy.deepcopy(self._model).double()(*double)
        return exact

    def _errors_of(self, result: Tensor, exact: Tensor) -> Errors:
        sums = ErrorSums(self._device)
        sums.add(result, exact)
        return sums.errors()

    def _tensor_from(self, model: nn.Module) -> Tensor:
        result = model(*self._inputs)
        if not isinstance(result, Tensor):
            raise ProblemError(
                f"{self._problem.path}: {type(model).__name__} must return one tensor to be "
                f"measured, it returned {type(result).__name__}"
            )
        return result

    def _floor_ms(self, precision: Precision) -> float:
        """The least time of Model's convolutions; what is around them is not counted."""
        with _ConvolutionSpecs() as seen:
            self._model(*self._inputs)
        ceilings = self._conditions.ceilings
        return sum(floor_ms(replace(spec, precision=precision), ceilings) for spec in seen.specs)

    def _calls(self) -> dict[str, Callable[[], Any]]:
        """What is timed, by the names of the record's columns."""
        calls = {
            "ms": lambda: self._solution(*self._inputs),
            "torch_ms": lambda: self._model(*self._inputs),
        }
        if Peer.CHANNELS_LAST in self._conditions.against:
            converted = copy.deepcopy(self._model)
            converted.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            inputs = [_channels_last(value) for value in self._inputs]
            calls["torch_channels_last_ms"] = lambda: converted(*inputs)
        if Peer.COMPILE in self._conditions.against:
            torch._dynamo.reset()
            compiled = torch.compile(self._model, dynamic=False)
            calls["torch_compile_ms"] = lambda: compiled(*self._inputs)
        return calls


class _ConvolutionSpecs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the spec of every 2D convolution that runs while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.specs: list[ConvSpec] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.convolution.default and args[0].dim() == 4:
            image, weight, bias, stride, padding, dilation, transposed, _, groups = args
            if not transposed:
                self.specs.append(
                    ConvSpec.of(
                        Direction.FORWARD,
                        image,
                        weight,
                        bias is not None,
                        _pair(stride),
                        _pair(padding),
                        _pair(dilation),
                        groups,
                    )
                )
        return func(*args, **(kwargs or {}))


def _pair(values: Sequence[int]) -> tuple[int, int]:
    """One number stands for both axes."""
    return values[0], values[-1]


def _double(value: Any) -> Any:
    is_floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if is_floating else value


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value
