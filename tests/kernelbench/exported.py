"""Exported files as the tests use them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import cpp_extension

from convsmith.kernelbench.export import exported_text
from convsmith.kernelbench.problem import load_module
from convsmith.kernelbench.simulated import simulated_load_inline
from convsmith.spec import ConvSpec, Direction, supported_dtypes

HERE = Path(__file__).parent
EXAMPLES = sorted((HERE.parent.parent / "examples" / "kernelbench").glob("*.py"))
PROBLEMS = sorted((HERE / "problems").glob("*.py"))


def load(problem: Path, folder: Path) -> ModuleType:
    """Export ``problem`` and run the file that comes of it."""
    file = folder / f"exported_{problem.name}"
    file.write_text(exported_text(problem))
    return load_module(file, file.stem)


def convolutions() -> dict[str, ConvSpec]:
    """A convolution for each family to compute, in every direction and dtype, by its name.

    And one for each other kind of kernel of the depthwise family, in every direction.
    """
    x, ones = torch.empty(2, 64, 9, 12), (1, 1)
    kinds = {
        "channels_last": (x.to(memory_format=torch.channels_last), torch.empty(64, 1, 3, 3)),
        "narrow_groups": (x, torch.empty(96, 2, 3, 3)),
        "large_filter": (x, torch.empty(64, 1, 9, 9)),
    }
    others = {
        f"{name}-{direction.value}": ConvSpec.of(
            direction, x, weight, True, (2, 1), (4, 4), ones, 64 // weight.shape[1]
        )
        for name, (x, weight) in kinds.items()
        for direction in Direction
    }
    return others | {
        f"{name}-{direction.value}-{str(dtype).removeprefix('torch.')}": ConvSpec.of(
            direction,
            torch.empty(2, 64, 9, 12, dtype=dtype),
            torch.empty(64, 64 // groups, 3, 3, dtype=dtype),
            True,
            ones,
            ones,
            ones,
            groups,
        )
        for name, groups in (("dense", 1), ("depthwise", 64))
        for direction in Direction
        for dtype in supported_dtypes()
    }


def exported_spec(module: ModuleType, spec: ConvSpec) -> Any:
    """``spec`` as the ConvSpec of an exported file."""
    _, *fields = module.ConvSpec._fields
    return module.ConvSpec(
        module.Direction(spec.direction.value), *(getattr(spec, field) for field in fields)
    )


def planned(module: ModuleType, spec: ConvSpec, capability: tuple[int, int]) -> tuple[Any, Any]:
    """What an exported file computes ``spec`` with: the Family and its template arguments."""
    own = exported_spec(module, spec)
    family = module.family_of(own, capability)
    return family, family.template_arguments(own, family.configure(own, 132))


class Simulation:
    """load_inline's place, taken by the simulator's stand-in; it counts the launches.

    Attributes:
        kernels: the names of the kernels that were built.
        launches: the direction of each launch.
    """

    def __init__(self) -> None:
        self.kernels: list[str] = []
        self.launches: list[str] = []

    @property
    def families(self) -> set[str]:
        """The families of the kernels."""
        return {name.removeprefix("convsmith_").rpartition("_")[0] for name in self.kernels}

    def load_inline(self, name: str, cpp_sources: Any, cuda_sources: Any, **options: Any) -> Any:
        kernel = simulated_load_inline(name, cpp_sources, cuda_sources, **options)
        self.kernels.append(name)

        class Counted:
            @staticmethod
            def simulate(direction: str, *arguments: Any) -> None:
                self.launches.append(direction)
                kernel.simulate(direction, *arguments)

        return Counted


@contextmanager
def simulating(module: ModuleType, folder: Path, monkeypatch: Any) -> Any:
    """Run the kernels of an exported file, loaded as ``module``, in the simulator."""
    simulation = Simulation()
    with monkeypatch.context() as patch:
        patch.setattr(module, "DEVICE_TYPE", "cpu")
        patch.setattr(cpp_extension, "load_inline", simulation.load_inline)
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
        yield simulation


def twins(module: ModuleType, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """(Model, ModelNew) of the same weights: each is drawn from the same seed."""
    models = []
    for cls in (module.Model, module.ModelNew):
        torch.manual_seed(0)
        models.append(cls(*args, **kwargs))
    return models[0], models[1]


def step(model: nn.Module, x: Tensor, call: Callable[[nn.Module, Tensor], Tensor] | None = None):
    """The output, and the gradients of the input and of the parameters, for a random upstream."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = call(model, x) if call else model(x)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]
    wanted = [x, *model.parameters()]
    grads = torch.autograd.grad(output, wanted, upstream.to(output))
    return {"output": output.detach(), "x": grads[0], **dict(zip(names, grads[1:], strict=True))}


def small_input(model: nn.Module) -> Tensor:
    """Two small images with the channels of the first convolution, of a few pixels of output."""
    conv = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    reach = zip(conv.kernel_size, conv.dilation, conv.padding, (2, 3), strict=True)
    size = [max(1, (taps - 1) * apart - 2 * padding + more) for taps, apart, padding, more in reach]
    return torch.randn(2, conv.in_channels, *size, device=conv.weight.device)


def assert_close(ours: Tensor, exact: Tensor, unit: float = 2**-24) -> None:
    """A few roundings of the largest element; shape, dtype and layout are for the caller."""
    error = (ours.double() - exact.double()).abs().max()
    assert error <= 32 * unit * exact.abs().max(), f"{error} of {exact.abs().max()}"


def assert_same_step(
    model: nn.Module,
    new: nn.Module,
    x: Tensor,
    unit: float = 2**-24,
    call: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> None:
    """Results and gradients of ModelNew next to Model's in float64, and laid out as Model's."""
    exact = step(copy.deepcopy(model).double(), x.double(), call)
    theirs, ours = step(model, x, call), step(new, x, call)
    assert theirs.keys() == ours.keys()
    for name, result in ours.items():
        assert result.dtype == theirs[name].dtype
        assert_close(result, exact[name], unit)
    assert ours["output"].stride() == theirs["output"].stride()
