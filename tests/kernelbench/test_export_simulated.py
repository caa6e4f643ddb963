"""What ModelNew computes, with its kernels in the simulator: PyTorch's results and gradients."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from exported import (
    EXAMPLES,
    PROBLEMS,
    Simulation,
    assert_close,
    assert_same_step,
    load,
    simulating,
    small_input,
    step,
    twins,
)
from torch import Tensor, nn
from torch.autograd import forward_ad

import convsmith
from convsmith.jit import simulator
from convsmith.jit.simulator import Buffer
from convsmith.kernels.source import KernelSource

PROBLEM = {problem.stem: problem for problem in PROBLEMS}
DEPTHWISE = [problem for problem in EXAMPLES if problem.stem[:2] in ("82", "83", "84", "85")]
STEP = {"forward", "grad_input", "grad_weight"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """Exports a problem; its file as a module, and the Simulation that it runs in.

    In the float32 class, unless a test wants another.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    entered = []

    def export(problem: Path) -> tuple[ModuleType, Simulation]:
        module = load(problem, tmp_path)
        context = simulating(module, tmp_path, monkeypatch)
        entered.append(context)
        return module, context.__enter__()

    yield export
    for context in entered:
        context.__exit__(None, None, None)


@pytest.fixture
def layer(run: Callable) -> tuple[ModuleType, Simulation]:
    """The problem of a single layer that takes nn.Conv2d's arguments."""
    return run(PROBLEM["layer"])


# ---- The sum and its gradients


@pytest.mark.parametrize("tf32", [False, True], ids=["float32", "tf32"])
@pytest.mark.parametrize("problem", EXAMPLES, ids=lambda problem: problem.stem)
def test_examples_with_their_own_channels(
    problem: Path, tf32: bool, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, simulation = run(problem)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    model, new = twins(module, *module.get_init_inputs())
    assert_same_step(model, new, small_input(model), unit=2**-11 if tf32 else 2**-24)
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in model.modules())
    assert len(simulation.launches) == 3 * convolutions
    assert set(simulation.launches) == STEP
    assert problem not in DEPTHWISE or simulation.families == {"depthwise"}


@pytest.mark.parametrize("problem", DEPTHWISE, ids=lambda problem: problem.stem)
def test_depthwise_examples_in_channels_last(problem: Path, run: Callable) -> None:
    """The upstream gradient too."""
    module, simulation = run(problem)
    model, new = twins(module, *module.get_init_inputs())
    x = small_input(model).to(memory_format=torch.channels_last)
    assert_same_step(model, new, x, call=lambda either, x: either(x).permute(0, 2, 3, 1))
    assert simulation.families == {"depthwise"}
    assert set(simulation.launches) == STEP


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "arguments",
    [
        {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2},
        {"stride": 3, "padding": 4, "bias": False},
        {"padding": "same", "dilation": (1, 2)},
        {"kernel_size": (2, 4), "padding": "same"},  # as many rows again as columns are missing
        {"padding": "valid", "groups": 4, "out_channels": 8},
        {"padding": (2, 1), "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "circular", "stride": 2},
        {"kernel_size": (2, 3), "padding": "same", "padding_mode": "replicate"},
        {"kernel_size": 1, "stride": (2,)},
    ],
    ids=str,
)
def test_arguments_of_the_layer(arguments: dict, layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    model, new = twins(
        module, **{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **arguments}
    )
    assert_same_step(model, new, torch.randn(2, 4, 9, 8))
    assert set(simulation.launches) == STEP


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [(torch.float64, 2**-53), (torch.float16, 2**-11), (torch.bfloat16, 2**-8)],
)
def test_dtypes(dtype: torch.dtype, unit: float, layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    model, new = twins(module, 4, 6, 3, padding=1, dtype=dtype)
    assert_same_step(model, new, torch.randn(2, 4, 5, 6, dtype=dtype), unit)
    assert set(simulation.launches) == STEP


def test_a_weight_gradient_in_several_parts(layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    model, new = twins(module, 2, 3, 1)
    assert_same_step(model, new, torch.randn(4, 2, 20, 30))
    assert set(simulation.launches) == STEP


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda x: x[:1].expand(2, -1, -1, -1),
    "channels of another": lambda x: torch.cat((x, x), 1)[:, 2:6],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_read_in_place(layout: str, layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    model, new = twins(module, 4, 6, 3, padding=1)
    x = LAYOUTS[layout](torch.randn(2, 4, 5, 6))
    with torch.no_grad():
        expected, result = model.double()(x.double()), new(x)
    assert_close(result, expected)
    channels_last = layout == "channels_last"
    assert result.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert simulation.launches == ["forward"]


def test_gradients_follow_the_layout_of_the_weight(layer: tuple[ModuleType, Simulation]) -> None:
    module, _ = layer
    model, new = twins(module, 4, 6, 3)
    for either in (model, new):
        either.to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 5, 6)
    theirs, ours = step(model, x), step(new, x)
    assert {name: t.stride() for name, t in ours.items()} == {
        name: t.stride() for name, t in theirs.items()
    }


def test_unbatched(layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    model, new = twins(module, 4, 6, 3, padding="same")
    assert_same_step(model, new, torch.randn(4, 5, 6))
    assert set(simulation.launches) == STEP


def test_only_the_gradients_asked_for(layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    model, new = twins(module, 4, 6, 3)
    x = torch.randn(2, 4, 5, 6)
    for frozen, launched in (
        ({"weight"}, {"forward"}),
        ({"bias"}, {"forward", "grad_weight"}),
        ({"weight", "bias"}, {"forward"}),
    ):
        simulation.launches.clear()
        grads = []
        for either in (model, new):
            for name, parameter in either.conv.named_parameters():
                parameter.requires_grad_(name not in frozen)
                parameter.grad = None
            output = either(x)
            if output.requires_grad:
                generator = torch.Generator().manual_seed(1)
                output.backward(torch.randn(output.shape, generator=generator))
            grads.append([parameter.grad for parameter in either.parameters()])
        for theirs, ours in zip(*grads, strict=True):
            assert (theirs is None) == (ours is None)
            if theirs is not None:
                assert_close(ours, theirs, 2**-22)
        assert set(simulation.launches) == launched


def test_second_derivatives(layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    arguments = {"stride": (2, 1), "padding": 1, "groups": 2, "dtype": torch.float64}
    _, new = twins(module, 2, 2, (2, 3), **arguments)
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    weight, bias = (
        parameter.detach().clone().requires_grad_() for parameter in new.conv.parameters()
    )

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return new.conv._conv_forward(x, weight, bias)

    assert torch.autograd.gradcheck(call, (x, weight, bias))
    assert torch.autograd.gradgradcheck(call, (x, weight, bias))
    assert set(simulation.launches) == STEP


def test_a_network(run: Callable) -> None:
    module, simulation = run(PROBLEM["residual"])
    model, new = twins(module, 5)
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in model.modules())
    assert_same_step(model, new, torch.randn(4, 3, 12, 10), 2**-20)
    assert len(simulation.launches) == 3 * convolutions
    for (name, theirs), ours in zip(model.named_buffers(), new.buffers(), strict=True):
        assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-6), name


# ---- The modules


def test_every_kind_of_layer(run: Callable) -> None:
    module, simulation = run(PROBLEM["kinds"])
    model, new = twins(module)
    x = torch.randn(2, 4, 6, 5)
    for either in (model, new):  # initialises the lazy one
        torch.manual_seed(1)
        with torch.no_grad():
            either(x)
    assert type(new.lazy) is module.Conv2d
    simulation.launches.clear()
    assert_same_step(model, new, x, 2**-21)
    # Functional calls PyTorch's function; the first layer runs twice.
    assert simulation.launches.count("forward") == 5
    for removed in (model, new):
        nn.utils.parametrize.remove_parametrizations(removed.parametrized, "weight")
    assert type(new.parametrized) is module.Conv2d
    assert_same_step(model, new, x, 2**-21)


def test_a_model_that_is_a_layer_itself(run: Callable, tmp_path: Path) -> None:
    problem = tmp_path / "itself.py"
    source = "import torch\nModel = torch.nn.Conv2d\ndef get_inputs(): ...\n"
    problem.write_text(source + "def get_init_inputs(): return [4, 6, 3]\n")
    module, simulation = run(problem)
    assert_same_step(*twins(module, 4, 6, 3), torch.randn(2, 4, 5, 6))
    assert set(simulation.launches) == STEP


def test_copies_and_states(layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    model, new = twins(module, 4, 6, 3)
    x = torch.randn(2, 4, 5, 6)
    file = io.BytesIO()
    torch.save(new, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    other = module.ModelNew(4, 6, 3)
    other.load_state_dict(model.state_dict())
    outputs = [either(x) for either in (new, copy.deepcopy(new), loaded, other)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert simulation.launches == ["forward"] * 4


def test_changed_arguments_count_as_they_do_in_nn_conv2d(
    layer: tuple[ModuleType, Simulation],
) -> None:
    module, simulation = layer
    model, new = twins(module, 4, 6, 3)
    for either in (model, new):
        either.conv.stride, either.conv.padding, either.conv.dilation = 2, [1, 2], (1,)
    assert_same_step(model, new, torch.randn(2, 4, 5, 6))
    assert set(simulation.launches) == STEP


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast(dtype: torch.dtype, layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    model, new = twins(module, 4, 6, 3, dtype=dtype)

    def call(either: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return either(x)

    x = torch.randn(2, 4, 5, 6, dtype=dtype)
    theirs, ours = step(model, x, call), step(new, x, call)
    for name, result in ours.items():
        assert result.dtype == theirs[name].dtype
        assert_close(result, theirs[name], 2**-8 if dtype is torch.float32 else 2**-52)
    assert ours["output"].dtype == (torch.bfloat16 if dtype is torch.float32 else dtype)
    assert set(simulation.launches) == STEP


# ---- What PyTorch's own convolution does


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(0, 4, 5, 6),
        torch.randn(2, 4, 2, 6),
        torch.randn(2, 5, 5, 6),
        torch.randn(4, 6),
        torch.randn(2, 4, 5, 6, dtype=torch.float64),
        torch.randint(9, (2, 4, 5, 6)),
        torch.randn(2, 4, 5, 6, device="meta"),
        torch.randn(2, 4, 5, 6, dtype=torch.complex64).conj().imag,
    ],
    ids=lambda x: f"{x.dtype} {tuple(x.shape)} {x.device}",
)
def test_what_is_not_for_the_kernels(x: Tensor, layer: tuple[ModuleType, Simulation]) -> None:
    """PyTorch's result or PyTorch's error, and no launch."""
    module, simulation = layer

    def result(either: nn.Module) -> Tensor | str:
        try:
            return either(x)
        except RuntimeError as error:
            return str(error)

    theirs, ours = map(result, twins(module, 4, 6, 3))
    if isinstance(theirs, str):
        assert theirs == ours
    else:
        assert theirs.shape == ours.shape
        assert theirs.is_meta or torch.equal(theirs, ours)
    assert simulation.launches == []


@pytest.mark.parametrize(
    "arguments",
    [{"stride": 0}, {"stride": (1, 1, 1)}, {"padding": -1}, {"dilation": 0}, {"dilation": (1, -1)}],
    ids=str,
)
def test_wrong_arguments(arguments: dict, layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    messages = []
    for either in twins(module, 4, 6, 3, **arguments):
        with pytest.raises(RuntimeError) as caught:
            either(torch.randn(2, 4, 5, 6))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert simulation.launches == []


def test_complex_numbers(layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    model, new = twins(module, 4, 6, 3, dtype=torch.complex64)
    x = torch.randn(2, 4, 5, 6, dtype=torch.complex64)
    assert torch.equal(model(x), new(x))
    assert simulation.launches == []


def test_forward_mode_and_torch_func(layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    model, new = twins(module, 4, 6, 3)
    x, tangent = torch.randn(2, 2, 4, 5, 6)
    with torch.no_grad(), forward_ad.dual_level():
        tangents = [
            forward_ad.unpack_dual(either(forward_ad.make_dual(x, tangent))).tangent
            for either in (model, new)
        ]
    assert torch.equal(*tangents)
    assert tangents[0].abs().max() > 0
    weight = dict(new.named_parameters())

    def loss(parameters: dict, sample: Tensor) -> Tensor:
        return torch.func.functional_call(new, parameters, (sample,)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)
    assert per_sample["conv.weight"].shape == (2, *new.conv.weight.shape)
    assert simulation.launches == []


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_and_traced(layer: tuple[ModuleType, Simulation]) -> None:
    module, simulation = layer
    model, new = twins(module, 4, 6, 3)
    x = torch.randn(2, 4, 5, 6)
    compiled = torch.compile(new, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), model(x))
    assert torch.equal(torch.jit.trace(new, x, check_trace=False)(x), model(x))
    assert simulation.launches == []


# ---- The simulator


@pytest.mark.parametrize("groups", [1, 2], ids=["direct", "depthwise"])
def test_operands_have_exactly_their_sizes(
    groups: int, layer: tuple[ModuleType, Simulation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes and rights of what a kernel may touch, in the order of its addresses."""
    seen: list[list[tuple[int, bool] | None]] = []
    run = simulator.run

    def recorded(source: KernelSource, problem: bytes, buffers: Sequence[Buffer | None]) -> None:
        seen.append([b and (b.nbytes, b.writable) for b in buffers])
        run(source, problem, buffers)

    monkeypatch.setattr(simulator, "run", recorded)
    module, simulation = layer
    _, new = twins(module, 2, 6, 1, groups=groups)
    x = torch.randn(4, 3, 20, 30)[:, 1:].requires_grad_()
    output = new(x)
    output.backward(torch.randn(4, 6, 20, 60)[..., ::2])
    family = "direct" if groups == 1 else "depthwise"
    others = {"implicit_gemm"} if groups == 1 else set()  # the forward
    assert simulation.families == {family} | others
    read, written = False, True
    x_bytes, y_bytes = 4 * (3 * 1800 + 1200), 4 * 4 * 6 * 600
    upstream = (2 * y_bytes - 4, read)
    w, b = 4 * 6 * 2 // groups, 4 * 6
    partial = 4 * (w + b)  # direct: 2400 terms in four parts
    if family == "depthwise":  # in float64, and in as many parts as the library would take
        with convsmith.simulator():
            plan = convsmith.plan(
                x, new.conv.weight, new.conv.bias, groups=groups, direction="grad_weight"
            )
        partial = plan.workspace_bytes
        assert partial % (2 * (w + b)) == 0
    packed: list[tuple[int, bool] | None] = [None, None]  # weights
    if family == "direct":
        with convsmith.simulator():
            plans = [
                convsmith.plan(x, new.conv.weight, direction=direction, kernel="implicit_gemm")
                for direction in ("forward", "grad_input")
            ]
        packed = [(plan.workspace_bytes, written) for plan in plans]
    assert seen == [
        [(x_bytes, read), (w, read), (b, read), (y_bytes, written), packed[0]],
        [upstream, (w, read), (4 * 4 * 1200, written), packed[1]],
        [upstream, (x_bytes, read), (w, written), (b, written), (partial, written)],
    ]
