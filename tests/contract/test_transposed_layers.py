"""conv_transpose2d under what PyTorch layers over a computation: autograd, functorch, graphs."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, is_channels_last, result_or_words, upstream_of
from running import backends
from torch import Tensor, func, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

import convsmith
from convsmith.ops import operators

ALL = backends("operators", "simulator", "cuda")
WAYS = backends("operators", "cuda")
ARGUMENTS = ((2, 1), (1, 0), (1, 0), 2, (1, 2))


def operands(device: str, batch: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (2, 4, 3, 5), (4, 3, 3, 2), (6,)
    x, w, b = (torch.randn((*batch, *shape), dtype=torch.float64) for shape in shapes)
    return x.to(device), w.to(device), b.to(device)


def conv(function, *arguments):
    """``function`` of input, weight and bias alone."""
    return lambda x, w, b: function(x, w, b, *(arguments or ARGUMENTS))


def cubed(function, *arguments):
    """A scalar whose every derivative up to the third is worth looking at."""

    def scalar(x, w, b):
        y = conv(function, *arguments)(x, w, b)
        return (y**3 * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).to(y).view(y.shape)).sum()

    return scalar


def agree(transform) -> None:
    """``transform`` of ConvSmith's function and of PyTorch's: the same, and without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        ours = transform(convsmith.conv_transpose2d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transform(F.conv_transpose2d)
    torch.testing.assert_close(ours, theirs)


# --- Differentiation.


@ALL
def test_second_and_third_derivatives(backend):
    """Nothing is added to the output here: PyTorch has no third derivative where anything is."""
    tensors = operands(backend.device)
    arguments = ((2, 1), (1, 0), 0, 2, (1, 2))

    def derivatives(function):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        scalar = cubed(function, *arguments)(*leaves)
        first = torch.autograd.grad(scalar, leaves, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), leaves, create_graph=True)
        third = torch.autograd.grad(sum((g**2).sum() for g in second), leaves)
        return [*first, *second, *third]

    agree(derivatives)
    assert backend.handed_over == 0


@WAYS
def test_third_derivatives_where_rows_are_added(backend):
    """By finite differences, where PyTorch raises."""
    x, w, _ = (tensor.requires_grad_() for tensor in operands(backend.device))

    def gradients(x, w):
        y = convsmith.conv_transpose2d(x, w, None, *ARGUMENTS)
        return torch.autograd.grad((y**3).sum(), (x, w), create_graph=True)

    assert gradgradcheck(gradients, (x, w), fast_mode=True)


@ALL
@pytest.mark.parametrize("dual", [*itertools.product((False, True), repeat=3)][1:], ids=str)
def test_tangents(backend, dual):
    """By value: a zero tangent is the known trap."""
    tensors = operands(backend.device)
    tangents = [tensor.cos() for tensor in tensors]

    def tangent(function):
        with forward_ad.dual_level():
            made = [
                forward_ad.make_dual(tensor, direction) if flag else tensor
                for tensor, direction, flag in zip(tensors, tangents, dual, strict=True)
            ]
            return tuple(forward_ad.unpack_dual(conv(function)(*made)))

    agree(tangent)
    assert tangent(convsmith.conv_transpose2d)[1].abs().max() > 0.1


@ALL
@pytest.mark.parametrize(
    "transform",
    [
        lambda f, tensors: func.grad(f, (0, 1, 2))(*tensors),
        lambda f, tensors: func.jvp(f, tensors, tuple(tensor.cos() for tensor in tensors)),
        lambda f, tensors: func.jvp(
            func.grad(f, (0, 1, 2)), tensors, tuple(tensor.cos() for tensor in tensors)
        ),
        lambda f, tensors: func.grad(
            lambda *inner: sum((g**2).sum() for g in func.grad(f, (0, 1, 2))(*inner)), (0, 1, 2)
        )(*tensors),
    ],
    ids=["grad", "jvp", "jvp of grad", "grad of grad"],
)
def test_transforms(backend, transform):
    tensors = operands(backend.device)
    agree(lambda function: tuple(transform(cubed(function), tensors)))


@ALL
@pytest.mark.parametrize("in_dims", [*itertools.product((None, 0), repeat=3)][1:], ids=str)
def test_vmap(backend, in_dims):
    """Every combination of mapped tensors, also differentiated; no slow fallback."""
    single, many = operands(backend.device), operands(backend.device, (3,))
    tensors = [
        one if dim is None else all_ for one, all_, dim in zip(single, many, in_dims, strict=True)
    ]
    agree(lambda function: func.vmap(conv(function), in_dims)(*tensors))
    agree(lambda function: func.vmap(func.grad(cubed(function), (0, 1, 2)), in_dims)(*tensors))


@WAYS
def test_vmap_of_channels_last(backend):
    """The mapped dimension is none of the four that such a layout is of."""
    x = torch.randn(3, 2, 4, 3, 5, device=backend.device)
    x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (3, 2))
    w = torch.randn(4, 2, 3, 3, device=backend.device)
    agree(lambda function: func.vmap(lambda x: function(x, w, None, 2))(x))


# --- Autocast.


@ALL
@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_autocast(backend, dtype, target):
    """Results and gradients have the dtypes of PyTorch's: float64 stays, all else is cast."""
    tensors = [tensor.to(dtype).requires_grad_() for tensor in operands(backend.device)]
    with torch.autocast(backend.device, target):
        ours = conv(convsmith.conv_transpose2d)(*tensors)
        theirs = conv(F.conv_transpose2d)(*tensors)
    assert ours.dtype is theirs.dtype is (torch.float64 if dtype is torch.float64 else target)
    gradients = [torch.autograd.grad(y, tensors, upstream_of(y)) for y in (ours, theirs)]
    assert [gradient.dtype for gradient in gradients[0]] == [dtype] * 3
    for our, their in zip((ours, *gradients[0]), (theirs, *gradients[1]), strict=True):
        assert (our - their).norm() <= 2e-2 * their.norm()
    assert backend.handed_over == 0


@ALL
@pytest.mark.parametrize(
    "dtypes", list(itertools.product((torch.float32, torch.float16, torch.float64), repeat=3))
)
def test_autocast_of_mixed_dtypes(backend, dtypes):
    tensors = [t.to(dtype) for t, dtype in zip(operands(backend.device), dtypes, strict=True)]

    with torch.autocast(backend.device, torch.bfloat16):
        ours, theirs = (
            result_or_words(conv(function), *tensors)
            for function in (convsmith.conv_transpose2d, F.conv_transpose2d)
        )
    if isinstance(theirs, str):
        assert ours == theirs
    else:
        assert ours.dtype is theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=4e-2)


@ALL
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_backward_pass_under_autocast_is_not_cast(backend, create_graph):
    """The dtype is that of the forward pass, though the gradient is a forward convolution."""
    tensors = [tensor.float().requires_grad_() for tensor in operands(backend.device)]
    y = conv(convsmith.conv_transpose2d)(*tensors)
    upstream = upstream_of(y)
    with torch.autocast(backend.device, torch.bfloat16):
        ours = torch.autograd.grad(y, tensors, upstream, create_graph=create_graph)
    y = conv(F.conv_transpose2d)(*tensors)
    assert_close(ours, torch.autograd.grad(y, tensors, upstream))


# --- Graphs.


class Model(nn.Module):
    """Up and down and up again."""

    def __init__(self, layers) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = layers.ConvTranspose2d(3, 8, 3, stride=2, padding=1, output_padding=1)
        self.down = layers.Conv2d(8, 8, 3, stride=2, groups=8)
        self.again = layers.ConvTranspose2d(8, 4, (2, 3), stride=(2, 1), groups=4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.down(self.up(x)))
        return self.again(y, output_size=[2 * y.shape[-2] + 1, y.shape[-1] + 2]).tanh()


def step(run, model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *model.parameters()], upstream_of(y))]


def models(device: str) -> list[nn.Module]:
    return [Model(layers).to(device) for layers in (convsmith, nn)]


def targets(module: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


@WAYS
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, dynamic, layout):
    """One whole graph, forward and backward, whatever the sizes."""
    torch.compiler.reset()
    graphs = []

    def recording(module, inputs):
        graphs.append(module)
        return module

    model, reference = models(backend.device)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    recorded = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=recording)
    for size in ((2, 3, 9, 10), (4, 3, 13, 12), (5, 3, 11, 8))[: 3 if dynamic else 1]:
        x = torch.randn(size, device=backend.device).to(memory_format=layout)
        expected = step(reference, reference, x)
        assert_close(step(compiled, model, x), expected)
        assert_close([recorded(x)], expected[:1])
        assert recorded(x).stride() == model(x).stride()
    assert len(graphs) == 1
    assert sum("convsmith.conv2d_input_gradient" in target for target in targets(graphs[0])) == 2
    assert not any("conv_transpose" in target for target in targets(graphs[0]))


@WAYS
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compile_with_inductor(backend, layout):
    torch.compiler.reset()
    model, reference = models(backend.device)
    x = torch.randn(2, 3, 9, 10, device=backend.device).to(memory_format=layout)
    assert_close(
        step(torch.compile(model, fullgraph=True), model, x), step(reference, reference, x)
    )


@WAYS
def test_compile_under_autocast(backend):
    torch.compiler.reset()
    model, reference = models(backend.device)

    def run(x, model):
        with torch.autocast(backend.device, torch.bfloat16):
            return model(x)

    x = torch.randn(2, 3, 9, 10, device=backend.device)
    ours = torch.compile(run, fullgraph=True, backend="aot_eager")(x, model)
    theirs = run(x, reference)
    assert ours.dtype is theirs.dtype is torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@WAYS
def test_compiled_autograd(backend):
    model, reference = models(backend.device)
    x = torch.randn(2, 3, 9, 10, device=backend.device)
    with torch._dynamo.compiled_autograd._enable(lambda m: torch.compile(m, backend="eager")):
        ours = step(model, model, x)
    assert_close(ours, step(reference, reference, x))


@WAYS
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_shapes(backend, strict):
    model, reference = models(backend.device)
    x = torch.randn(2, 3, 9, 10, device=backend.device)
    n, h, w = (torch.export.Dim(name, min=4, max=64) for name in "nhw")
    exported = torch.export.export(
        model, (torch.randn(4, 3, 9, 10, device=backend.device),),
        dynamic_shapes=({0: n, 2: h, 3: w},), strict=strict,
    )  # fmt: skip
    calls = targets(exported.graph_module)
    assert sum("convsmith.conv2d_input_gradient" in target for target in calls) == 2
    x = torch.randn(5, 3, 12, 7, device=backend.device)
    assert_close([exported.module()(x)], [reference(x)])


@WAYS
def test_export_to_onnx_is_pytorchs(backend, monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    x = torch.randn(2, 3, 9, 10, device=backend.device)
    exported = torch.export.export(models(backend.device)[0], (x,), strict=False)
    calls = targets(exported.graph_module)
    assert not any("convsmith" in target for target in calls)
    assert sum("aten.conv_transpose2d" in target for target in calls) == 2


@WAYS
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fake_tensors(backend, layout, batched):
    """Shapes and layouts without data, of results and gradients."""
    with FakeTensorMode():
        x = torch.empty(2, 4, 9, 7, device=backend.device).to(memory_format=layout)
        x = (x if batched else x[0]).requires_grad_()
        w = torch.empty(4, 3, 3, 2, device=backend.device, requires_grad=True)
        b = torch.empty(6, device=backend.device, requires_grad=True)
        y = convsmith.conv_transpose2d(x, w, b, (2, 1), 1, (1, 0), 2, (1, 2))
        gradients = torch.autograd.grad(y, (x, w, b), torch.empty_like(y))
    assert y.shape == ((2, 6, 18, 7) if batched else (6, 18, 7))
    assert [tensor.shape for tensor in gradients] == [x.shape, w.shape, b.shape]
    if batched:
        assert is_channels_last(y) == (layout is torch.channels_last)
    assert backend.handed_over == 0


def test_fake_tensors_of_a_gpu_without_one():
    """Of a mode that is not on, too."""
    mode = FakeTensorMode()
    with mode:
        x, w = (torch.empty(shape, device="cuda:1") for shape in ((2, 4, 9, 7), (4, 3, 3, 2)))
    y = convsmith.conv_transpose2d(x, w, stride=2)
    assert (y.shape, y.device) == ((2, 3, 19, 14), torch.device("cuda:1"))


def test_meta_tensors():
    x, w, b = (torch.empty(shape, device="meta") for shape in ((2, 4, 9, 7), (4, 3, 3, 2), (3,)))
    assert convsmith.conv_transpose2d(x, w, b, 2).shape == (2, 3, 19, 14)
    assert convsmith.ConvTranspose2d(4, 6, 3, device="meta")(x).shape == (2, 6, 11, 9)


@WAYS
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(backend, mode):
    def loss(function):
        return lambda *inner: (conv(function)(*inner) ** 2).sum()

    tensors = operands(backend.device)
    traced = make_fx(func.grad(loss(convsmith.conv_transpose2d)), tracing_mode=mode)(*tensors)
    for name in ("conv2d_input_gradient", "conv2d"):  # Forward and backward.
        assert f"convsmith.{name}.default" in targets(traced)
    assert_close([traced(*tensors)], [func.grad(loss(F.conv_transpose2d))(*tensors)])


def scripted_function(x: Tensor, w: Tensor) -> Tensor:
    return convsmith.conv_transpose2d(x, w, stride=[2, 2], output_padding=[1, 0])


@WAYS
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_and_trace_have_pytorchs_in_them(backend, tmp_path):
    model = convsmith.ConvTranspose2d(3, 4, 3, stride=2).to(backend.device)
    x, w = (torch.randn(shape, device=backend.device) for shape in ((2, 3, 5, 7), (3, 4, 3, 3)))
    model(x)  # Remembered: the tracer is to be heeded all the same.
    scripted, traced = torch.jit.script(model), torch.jit.trace(model, (x,))
    for module in (scripted, traced):
        assert "convsmith::" not in str(module.inlined_graph)
    torch.jit.save(scripted, tmp_path / "scripted.pt")
    loaded = torch.jit.load(tmp_path / "scripted.pt")
    assert_close([scripted(x), loaded(x), traced(x)], [model(x)] * 3)
    assert_close([loaded(x, [12, 15])], [model(x, [12, 15])])
    expected = F.conv_transpose2d(x, w, stride=2, output_padding=(1, 0))
    assert_close([torch.jit.script(scripted_function)(x, w)], [expected])


@WAYS
def test_fx_symbolic_trace(backend):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return False

    model = convsmith.ConvTranspose2d(3, 4, 3, stride=2).to(backend.device)
    graph = Tracer().trace(model, {"output_size": None})
    assert torch.conv_transpose2d in [node.target for node in graph.nodes]
    x = torch.randn(2, 3, 9, 7, device=backend.device)
    assert_close([torch.fx.GraphModule(model, graph)(x)], [model(x)])


@ALL
def test_classes_and_modes_claim_the_call(backend):
    seen = []

    class Claiming(Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), keywords=None):
            seen.append(function)
            return super().__torch_function__(function, types, arguments, keywords or {})

    class Answering(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            return "answer"

    tensors = operands(backend.device)
    expected = conv(convsmith.conv_transpose2d)(*tensors)
    for place in range(3):
        seen.clear()
        claimed = [*tensors]
        claimed[place] = tensors[place].as_subclass(Claiming)
        y = conv(convsmith.conv_transpose2d)(*claimed)
        assert torch.conv_transpose2d in seen
        assert_close([y.as_subclass(Tensor)], [expected])
    with Answering():
        assert conv(convsmith.conv_transpose2d)(*tensors) == "answer"


@ALL
def test_replacing_pytorchs_function_by_ours(backend, monkeypatch):
    original = F.conv_transpose2d
    monkeypatch.setattr(F, "conv_transpose2d", convsmith.conv_transpose2d)
    monkeypatch.setattr(torch, "conv_transpose2d", convsmith.conv_transpose2d)
    x, w, b = operands(backend.device)
    assert_close([conv(F.conv_transpose2d)(x, w, b)], [conv(original)(x, w, b)])
    with pytest.raises(RuntimeError, match="non-positive stride"):
        F.conv_transpose2d(x, w, None, stride=0)
    module = nn.ConvTranspose2d(4, 6, 3).to(backend.device, torch.float64)
    assert_close([module(x)], [original(x, module.weight, module.bias)])


@backends("simulator", "cuda")
def test_an_ordinary_backward_pass_goes_past_the_dispatcher(backend, monkeypatch):
    tensors = [tensor.requires_grad_() for tensor in operands(backend.device)]
    y = conv(convsmith.conv_transpose2d)(*tensors)
    for name in ("CONV2D", "WEIGHT_GRADIENT"):
        monkeypatch.setattr(operators, name, getattr(operators, name)._replace(overload=None))
    g = upstream_of(y)
    expected = torch.autograd.grad(conv(F.conv_transpose2d)(*tensors), tensors, g)
    assert_close(torch.autograd.grad(y, tensors, g), expected)
