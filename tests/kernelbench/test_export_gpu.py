"""Exported files on a GPU: compiled by their own hand, right, on every stream and device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from exported import (
    EXAMPLES,
    PROBLEMS,
    assert_close,
    assert_same_step,
    load,
    small_input,
    step,
    twins,
)
from torch import Tensor, nn

from convsmith.kernelbench.export import exported_text

pytestmark = pytest.mark.gpu
PROBLEM = {problem.stem: problem for problem in PROBLEMS}


@pytest.fixture(scope="module", autouse=True)
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for what these tests compile, as KernelBench sets it, and its architecture."""
    folder = tmp_path_factory.mktemp("extensions")
    major, minor = torch.cuda.get_device_capability()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(folder))
        patch.setenv("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
        yield folder


@pytest.fixture
def layer(tmp_path: Path) -> ModuleType:
    """The exported problem of a single layer that takes nn.Conv2d's arguments."""
    return load(PROBLEM["layer"], tmp_path)


def launches(module: ModuleType) -> int:
    """Launches so far that were prepared or looked up."""
    info = module.prepare.cache_info()
    return info.hits + info.misses


@pytest.fixture(params=["float32", "tf32"])
def unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """One precision class of float32 after the other, and a rounding in it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", request.param == "tf32")
    return 2**-24 if request.param == "float32" else 2**-15


@pytest.mark.parametrize("problem", EXAMPLES, ids=lambda problem: problem.stem)
def test_examples_with_their_own_channels(problem: Path, unit: float, tmp_path: Path) -> None:
    module = load(problem, tmp_path)
    model, new = (either.cuda() for either in twins(module, *module.get_init_inputs()))
    assert_same_step(model, new, small_input(model), unit)
    assert launches(module) == 3 * sum(isinstance(part, nn.Conv2d) for part in model.modules())


def test_a_network(unit: float, tmp_path: Path) -> None:
    module = load(PROBLEM["residual"], tmp_path)
    model, new = (either.cuda() for either in twins(module, 5))
    assert_same_step(model, new, torch.randn(4, 3, 12, 10, device="cuda"), 16 * unit)


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [(torch.float64, 2**-53), (torch.float16, 2**-11), (torch.bfloat16, 2**-8)],
)
def test_dtypes_and_channels_last(dtype: torch.dtype, unit: float, layer: ModuleType) -> None:
    models = twins(layer, 16, 12, 3, padding=1, groups=2, dtype=dtype)
    model, new = (either.cuda() for either in models)
    x = torch.randn(2, 16, 20, 21, device="cuda").to(dtype)
    assert_same_step(model, new, x, unit)
    x = x.to(memory_format=torch.channels_last)
    model, new = (either.to(memory_format=torch.channels_last) for either in (model, new))
    assert_same_step(model, new, x, unit)
    assert launches(layer) == 6


def test_runs_to_run_the_same_bits(layer: ModuleType) -> None:
    _, new = (either.cuda() for either in twins(layer, 8, 16, 3))
    x = torch.randn(8, 8, 96, 96, device="cuda")
    first, second = step(new, x), step(new, x)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_second_derivatives(layer: ModuleType) -> None:
    _, new = twins(layer, 2, 4, (2, 3), stride=(2, 1), padding=1, groups=2, dtype=torch.float64)
    new.cuda()
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, device="cuda", requires_grad=True)
    weight, bias = (p.detach().clone().requires_grad_() for p in new.conv.parameters())

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return new.conv._conv_forward(x, weight, bias)

    assert torch.autograd.gradgradcheck(call, (x, weight, bias))


def test_autocast(layer: ModuleType) -> None:
    model, new = (either.cuda() for either in twins(layer, 8, 6, 3))

    def call(either: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.float16):
            return either(x)

    x = torch.randn(2, 8, 9, 10, device="cuda")
    theirs, ours = step(model, x, call), step(new, x, call)
    assert ours["output"].dtype == torch.float16
    for name, result in ours.items():
        assert result.dtype == theirs[name].dtype
        assert_close(result, theirs[name], 2**-11)


def test_runs_on_the_current_stream_and_in_a_graph(layer: ModuleType) -> None:
    _, new = (either.cuda() for either in twins(layer, 8, 6, 3))
    x = torch.randn(2, 8, 9, 10, device="cuda")
    with torch.no_grad():
        expected = new(x)
        # A stream that is late: what runs on another one reads zeros.
        stream, late = torch.cuda.Stream(), torch.zeros_like(x)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            late.copy_(x)
            result = new(late)
        stream.synchronize()
        assert torch.equal(result, expected)
        graph = torch.cuda.CUDAGraph()
        static = torch.zeros_like(x)
        with torch.cuda.graph(graph):
            result = new(static)
        static.copy_(x)
        graph.replay()
        assert torch.equal(result, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_the_device_of_its_tensors(layer: ModuleType) -> None:
    model, new = (either.to("cuda:1") for either in twins(layer, 8, 6, 3))
    assert torch.cuda.current_device() == 0
    assert_same_step(model, new, torch.randn(2, 8, 9, 10, device="cuda:1"))
    assert torch.cuda.current_device() == 0


CHILD = """
import sys
sys.modules["convsmith"] = None  # importing it is an error
import torch

space = {}
exec("import os\\nos.environ['X'] = ''\\n" + open(sys.argv[1]).read(), space)
new = space["ModelNew"](4, 6, 3).cuda()
x = torch.randn(2, 4, 9, 8, device="cuda", requires_grad=True)
output = new(x)
output.backward(torch.randn_like(output))
torch.cuda.synchronize()
assert space["prepare"].cache_info().misses == 3
"""


def test_another_process_without_convsmith_compiles_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, the first with nothing compiled: the second changes no file of the first's."""
    extensions = tmp_path / "extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    file = tmp_path / "model_new.py"
    file.write_text(exported_text(PROBLEM["layer"]))
    built = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-I", "-c", CHILD, str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        built.append({path: path.stat().st_mtime_ns for path in extensions.iterdir()})
    assert len(built[0]) == 3
    assert built[1] == built[0]
