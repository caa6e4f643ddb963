"""What every trial works on: Model and ModelNew with equal weights, and arguments for them."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from convsmith.errors import ProblemError
from convsmith.kernelbench.cases import Case, Layout, Shape, Template, Values, make_case
from convsmith.kernelbench.problem import Problem, describe
from convsmith.kernelbench.trials.uses import forward

Result = TypeVar("Result")

WEIGHT_SEED = 0
INPUT_SEED = 1
# Heights tried, in turn, for an input that Model accepts. Widths are greater by WIDER, so that an
# exchange of the two axes shows. The problem's own sizes come last.
HEIGHTS = (12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SIMULATED_HEIGHTS = (4, 6, 8, *HEIGHTS)  # the simulator is slow
WIDER = 5
SECONDS_TO_SHRINK = 60.0


class SolutionError(Exception):
    """The solution raised, or gave what cannot be compared; the message is for the report."""


class DeviceLostError(SolutionError):
    """The solution left the GPU in a state in which it answers nothing more to this process."""


class NotApplicableError(Exception):
    """Model itself cannot do what a trial is about; the message says why."""


class UndecidedError(Exception):
    """A trial could not be decided; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """Batch, height and width of a case; the channels are Model's."""

    batch: int
    height: int
    width: int


@dataclass(frozen=True)
class Pair:
    """Model, its float64 copy, and ModelNew, with the same weights where that is possible."""

    model: nn.Module
    exact: nn.Module
    solution: nn.Module

    def names(self, module: nn.Module) -> list[str]:
        """Model's names of the parameters of one of the three, in the module's order.

        Where ModelNew's names are others, its parameters have those of Model's in their places.
        """
        theirs = [name for name, _ in self.model.named_parameters()]
        ours = [name for name, _ in module.named_parameters()]
        if set(theirs) != set(ours):
            ours[: len(theirs)] = theirs[: len(ours)]
        return ours

    def eval(self) -> Pair:
        """Put the three in evaluation mode."""
        for module in (self.model, self.exact, self.solution):
            module.eval()
        return self


class Subject:
    """A problem and a solution, on one device.

    Args:
        problem: the problem.
        solution: ModelNew.
        source: the solution's file.
        device: what everything runs on.
        simulated: kernels run in the simulator, so sizes are as small as can be.
        announce: told the line of each input before the solution gets it.

    Attributes:
        sizes: the usual small sizes of a case.
        seconds_to_shrink: the time left for finding smallest inputs, of all tests together.

    Raises:
        ProblemError: the problem's own arguments or Model do not work.
    """

    def __init__(
        self,
        problem: Problem,
        solution: type[nn.Module],
        source: Path,
        device: torch.device,
        *,
        simulated: bool,
        announce: Callable[[str], None],
    ) -> None:
        self.problem = problem
        self.solution = solution
        self.source = source
        self.device = device
        self.simulated = simulated
        self.announce = announce
        self.seconds_to_shrink = SECONDS_TO_SHRINK
        self.init_inputs = problem.init_inputs()
        self.templates = [Template.of(value) for value in _empty_inputs(problem)]
        shapes = [template.shape for template in self.templates if template.shape is not None]
        self.main_shape = max(shapes, key=len)
        try:
            self.sizes = self.fitting(self.model())
        except Exception as error:
            raise ProblemError(f"{problem.path}: Model raised {describe(error)}") from error

    # Modules

    def arguments(self) -> inspect.BoundArguments:
        """The problem's arguments of Model's constructor, by name, defaults included."""
        bound = inspect.signature(self.problem.Model).bind(*self.init_inputs)
        bound.apply_defaults()
        return bound

    def model(self, arguments: inspect.BoundArguments | None = None) -> nn.Module:
        """A Model on the device, its weights drawn from WEIGHT_SEED."""
        return self._build(self.problem.Model, arguments)

    def pair(self, arguments: inspect.BoundArguments | None = None) -> Pair:
        """Fresh modules in training mode; of other constructor arguments if they are given.

        Raises:
            SolutionError: ModelNew cannot be constructed.
        """
        model = self.model(arguments)
        solution = self.attempt(lambda: self._build(self.solution, arguments))
        equalise(model, solution)
        return Pair(model, copy.deepcopy(model).double(), solution)

    def _build(self, cls: type[nn.Module], arguments: inspect.BoundArguments | None) -> nn.Module:
        torch.manual_seed(WEIGHT_SEED)
        module = (
            cls(*self.init_inputs)
            if arguments is None
            else cls(*arguments.args, **arguments.kwargs)
        )
        return module.to(self.device)

    def attempt(self, action: Callable[[], Result]) -> Result:
        """Do what runs the solution's code, to its end on the device.

        Raises:
            SolutionError: it raised; `DeviceLostError` if the GPU answers no more.
            UndecidedError: the GPU's memory is too small.
        """
        try:
            result = action()
            self._synchronize()
        except torch.OutOfMemoryError as error:
            raise UndecidedError(f"not enough GPU memory: {describe(error)}") from error
        except (Exception, SystemExit) as error:
            message = describe(error) + self._line_of(error)
            try:
                self._synchronize()
            except Exception:
                raise DeviceLostError(message) from error
            raise SolutionError(message) from error
        return result

    def _synchronize(self) -> None:
        """Wait for the device, so that a failure is found where it belongs."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _line_of(self, error: BaseException) -> str:
        """Where in the solution's file an exception passed last, in words."""
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(self.source)
        ]
        return f" (line {lines[-1]} of {self.source.name})" if lines else ""

    # Arguments of forward

    def case(
        self,
        sizes: Sizes | None = None,
        *,
        seed: int = INPUT_SEED,
        values: Values = Values.RANDN,
        layout: Layout = Layout.CONTIGUOUS,
        special: bool = False,
    ) -> Case:
        """A case of the given sizes, else of the usual small ones; see `make_case`."""
        shapes = [
            None if template.shape is None else self._resized(template.shape, sizes or self.sizes)
            for template in self.templates
        ]
        return make_case(
            self.templates,
            shapes,
            self.device,
            seed=seed,
            values=values,
            layout=layout,
            special=special,
        )

    def full_inputs(self, seed: int = INPUT_SEED) -> list[Any]:
        """The problem's own inputs, drawn on the device where get_inputs lets them be."""
        torch.manual_seed(seed)
        with self.device:
            inputs = self.problem.inputs()
        return [x.to(self.device) if isinstance(x, Tensor) else x for x in inputs]

    def full_sizes(self) -> Sizes:
        """The sizes of the problem's own inputs."""
        batch, *rest = self.main_shape or (1,)
        height, width = [1, 1, *rest][-2:]
        return Sizes(batch, height, width)

    def fitting(self, model: nn.Module) -> Sizes:
        """Small sizes that ``model`` accepts, with several rows and columns of output if it can.

        Raises:
            Exception: Model's own, on the problem's sizes, if it accepts none.
        """
        heights = SIMULATED_HEIGHTS if self.simulated else HEIGHTS
        full = self.full_sizes()
        candidates = [Sizes(2, height, height + WIDER) for height in heights]
        candidates.append(replace(full, batch=2))
        training = model.training
        model.eval()
        try:
            for fewest in (2, 1):
                for sizes in candidates:
                    if self.accepts(model, sizes, fewest):
                        return sizes
            forward(model, self.case(full).inputs())
        finally:
            model.train(training)
        return full

    def accepts(self, model: nn.Module, sizes: Sizes, fewest: int = 1) -> bool:
        """Whether ``model`` runs on these sizes and gives images of ``fewest`` rows and columns."""
        try:
            found = forward(model, self.case(sizes, values=Values.ZEROS).inputs())
        except Exception:
            return False
        return all(
            output.numel() > 0 and (output.dim() < 4 or min(output.shape[-2:]) >= fewest)
            for output in found.values()
        )

    def _resized(self, shape: Shape, sizes: Sizes) -> Shape:
        """``shape`` in another batch, height and width, if it has the batch of the main input."""
        if not shape or shape[0] != self.full_sizes().batch:
            return shape
        resized = [sizes.batch, *shape[1:]]
        if len(shape) >= 3:
            resized[-1] = sizes.width
        if len(shape) >= 4:
            resized[-2] = sizes.height
        return tuple(resized)


def equalise(model: nn.Module, solution: nn.Module) -> None:
    """Copy Model's weights into ModelNew: by name, or in order where only the shapes agree.

    Where those do not either, ModelNew keeps what it drew from the same seed.
    """
    theirs, ours = model.state_dict(), solution.state_dict()
    sources, targets = list(theirs.values()), list(ours.values())
    if theirs.keys() == ours.keys():
        targets = [ours[name] for name in theirs]
    if [source.shape for source in sources] != [target.shape for target in targets]:
        return
    with torch.no_grad():
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)


def _empty_inputs(problem: Problem) -> list[Any]:
    """The problem's inputs without their contents, however large they are."""
    try:
        with torch.device("meta"):
            return problem.inputs()
    except ProblemError:  # it looks at contents
        return problem.inputs()
