"""What records a convolution instead of running it: compile, export, FakeTensor, FX, script."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, is_channels_last, upstream_of
from running import backends
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import convsmith

WAYS = backends("operators", "cuda")


class Model(nn.Module):
    """Convolutions of every kind, with something around them."""

    def __init__(self, layer: type[nn.Module], padding_mode: str = "circular") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = layer(3, 8, 3, padding=1)
        self.second = layer(8, 8, 3, stride=2, groups=8, padding="valid", bias=False)
        self.third = layer(8, 4, (1, 2), padding="same")
        self.fourth = layer(4, 4, 3, padding=1, padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.fourth(self.third(torch.relu(self.second(self.first(x)))).tanh()) * 2


def targets(module: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


def step(run, model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().clone().requires_grad_()
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *model.parameters()], upstream_of(y))]


# --- torch.compile.


@WAYS
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, dynamic):
    """Whole graphs, forward and backward, with our operators in them; sizes may vary."""
    graphs = []

    def recording(module, inputs):
        graphs.append(module)
        return module

    model, reference = (Model(layer).to(backend.device) for layer in (convsmith.Conv2d, nn.Conv2d))
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    recorded = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=recording)
    for size in ((2, 3, 9, 10), (4, 3, 13, 12), (5, 3, 11, 8))[: 3 if dynamic else 1]:
        x = torch.randn(size, device=backend.device)
        expected = step(reference, reference, x)
        assert_close(step(compiled, model, x), expected)
        assert_close([recorded(x)], expected[:1])
    assert len(graphs) == 1
    assert sum("convsmith.conv2d" in target for target in targets(graphs[0])) == 4
    assert not any("aten.conv" in target for target in targets(graphs[0]))


@WAYS
def test_compile_with_inductor(backend):
    model, reference = (Model(layer).to(backend.device) for layer in (convsmith.Conv2d, nn.Conv2d))
    x = torch.randn(2, 3, 9, 10, device=backend.device)
    x = x.contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(model, fullgraph=True)
    assert_close(step(compiled, model, x), step(reference, reference, x))


@WAYS
def test_compile_under_autocast(backend):
    model, reference = (Model(layer).to(backend.device) for layer in (convsmith.Conv2d, nn.Conv2d))

    def run(x, model):
        with torch.autocast(backend.device, torch.bfloat16):
            return model(x)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 9, 10, device=backend.device)
    ours, theirs = compiled(x, model), run(x, reference)
    assert ours.dtype is theirs.dtype is torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@WAYS
def test_compile_of_a_transform(backend):
    # In float64: two orders of adding up float32 would differ by more than a transform may.
    options = {"device": backend.device, "dtype": torch.float64}
    w, b = torch.randn(6, 2, 3, 2, **options), torch.randn(6, **options)
    x = torch.randn(3, 2, 4, 7, 6, **options)

    def per_sample(function):
        def loss(w, x):
            return (function(x, w, b, padding=1, groups=2) ** 2).sum()

        return lambda x: torch.func.vmap(torch.func.grad(loss), (None, 0))(w, x)

    compiled = torch.compile(per_sample(convsmith.conv2d), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), per_sample(F.conv2d)(x))


@WAYS
def test_compiled_autograd(backend):
    """The backward pass, traced: our gradients are operators there, too."""
    model, reference = (Model(layer).to(backend.device) for layer in (convsmith.Conv2d, nn.Conv2d))
    graphs = []

    def recording(module):
        def inner(module, inputs):
            graphs.append(module)
            return module

        return torch.compile(module, backend=inner)

    x = torch.randn(2, 3, 9, 10, device=backend.device)
    with torch._dynamo.compiled_autograd._enable(recording):
        ours = step(model, model, x)
    assert_close(ours, step(reference, reference, x))
    assert graphs


@WAYS
def test_errors_while_compiling(backend):
    compiled = torch.compile(lambda x, w: convsmith.conv2d(x, w), backend="eager")
    x, w = torch.randn(2, 5, 8, 8), torch.randn(6, 4, 3, 3)
    with pytest.raises(Exception, match="to have 4 channels, but got 5 channels instead"):
        compiled(x.to(backend.device), w.to(backend.device))


def test_compile_on_a_cpu_is_pytorchs():
    """No kernel of ours runs there: the compiler is to have what it knows."""
    graphs = []

    def recording(module, inputs):
        graphs.append(module)
        return module

    model = Model(convsmith.Conv2d)
    torch.compile(model, fullgraph=True, backend=recording)(torch.randn(2, 3, 9, 10))
    assert not any("convsmith" in target for target in targets(graphs[0]))


# --- torch.export.


@WAYS
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_shapes(backend, strict):
    # Not circular: torch 2.8 cannot export F.pad with every width.
    model, reference = (
        Model(layer, "zeros").to(backend.device) for layer in (convsmith.Conv2d, nn.Conv2d)
    )
    x = torch.randn(2, 3, 9, 10, device=backend.device)
    dimensions = {
        name: torch.export.Dim(name, min=2 if name == "n" else 5, max=64)
        for name in ("n", "h", "w")
    }
    exported = torch.export.export(
        model,
        (x,),
        dynamic_shapes=({0: dimensions["n"], 2: dimensions["h"], 3: dimensions["w"]},),
        strict=strict,
    )
    calls = targets(exported.graph_module)
    assert sum("convsmith.conv2d" in target for target in calls) == 4
    run = exported.module()
    for size in ((2, 3, 9, 10), (5, 3, 12, 7)):
        x = torch.randn(size, device=backend.device)
        assert_close([run(x)], [reference(x)])


@WAYS
def test_export_to_onnx_is_pytorchs(backend, monkeypatch):
    """The exporter knows aten's operators, and what it writes runs without ConvSmith."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    x = torch.randn(2, 3, 9, 10, device=backend.device)
    exported = torch.export.export(Model(convsmith.Conv2d).to(backend.device), (x,), strict=False)
    calls = targets(exported.graph_module)
    assert not any("convsmith" in target for target in calls)
    assert sum("aten.conv2d" in target for target in calls) == 4


# --- FakeTensor, meta, FX.


FORMATS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


@WAYS
@FORMATS
@pytest.mark.parametrize("batched", [True, False])
def test_fake_tensors(backend, layout, batched):
    """Shapes, dtypes, devices and layouts without data, of results and of gradients."""
    with FakeTensorMode():
        x = torch.empty(2, 4, 9, 7, device=backend.device).to(memory_format=layout)
        x = (x if batched else x[0]).requires_grad_()
        w = torch.empty(6, 2, 3, 2, device=backend.device, requires_grad=True)
        b = torch.empty(6, device=backend.device, requires_grad=True)
        y = convsmith.conv2d(x, w, b, (2, 1), 1, (1, 2), 2)
        gradients = torch.autograd.grad(y, (x, w, b), torch.empty_like(y))
    assert y.shape == ((2, 6, 5, 7) if batched else (6, 5, 7))
    assert y.device == x.device
    assert [tensor.shape for tensor in gradients] == [x.shape, w.shape, b.shape]
    if batched:
        assert is_channels_last(y) == (layout is torch.channels_last)
    assert backend.handed_over == 0


@FORMATS
def test_fake_tensors_of_a_gpu_without_one(layout):
    with FakeTensorMode():
        x = torch.empty(2, 4, 9, 7, device="cuda:1").to(memory_format=layout)
        y = convsmith.conv2d(x, torch.empty(6, 4, 3, 2, device="cuda:1"), padding=1)
    assert (y.shape, y.device) == ((2, 6, 9, 8), torch.device("cuda:1"))
    assert is_channels_last(y) == (layout is torch.channels_last)


def test_meta_tensors():
    x, w, b = (torch.empty(shape, device="meta") for shape in ((2, 4, 9, 7), (6, 4, 3, 2), (6,)))
    assert convsmith.conv2d(x, w, b).shape == (2, 6, 7, 6)
    y = torch.ops.convsmith.conv2d(x, w, b, (1, 1), (0, 0), (1, 1), 1)
    assert (y.shape, y.device.type) == ((2, 6, 7, 6), "meta")
    assert convsmith.Conv2d(4, 6, 3, device="meta")(x).shape == (2, 6, 7, 5)


@WAYS
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(backend, mode):
    tensors = [
        torch.randn(shape, device=backend.device) for shape in ((2, 4, 9, 7), (6, 4, 3, 2), (6,))
    ]

    def run(x, w, b):
        return torch.func.grad(lambda *inner: (convsmith.conv2d(*inner, padding=1) ** 2).sum())(
            x, w, b
        )

    traced = make_fx(run, tracing_mode=mode)(*tensors)
    assert "convsmith.conv2d.default" in targets(traced)
    assert "convsmith.conv2d_input_gradient.default" in targets(traced)
    expected = torch.func.grad(lambda *inner: (F.conv2d(*inner, padding=1) ** 2).sum())(*tensors)
    assert_close([traced(*tensors)], [expected])


@WAYS
def test_fx_symbolic_trace(backend):
    """A proxy is a class that claims the call: the graph has torch.conv2d in it, as from nn."""
    model = convsmith.Conv2d(3, 4, 3).to(backend.device)

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return False

    graph = Tracer().trace(model)
    assert torch.conv2d in [node.target for node in graph.nodes if node.op == "call_function"]
    traced = torch.fx.GraphModule(model, graph)
    x = torch.randn(2, 3, 9, 7, device=backend.device)
    assert_close([traced(x)], [model(x)])


# --- TorchScript: what it writes runs without ConvSmith.


@WAYS
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script(backend, tmp_path):
    for padding_mode in ("zeros", "reflect"):
        for padding in (1, "same"):
            torch.manual_seed(0)
            model = convsmith.Conv2d(3, 4, 3, padding=padding, padding_mode=padding_mode)
            model = model.to(backend.device)
            scripted = torch.jit.script(model)
            assert "aten::conv2d" in str(scripted.inlined_graph)
            assert "convsmith::" not in str(scripted.inlined_graph)
            x = torch.randn(2, 3, 9, 7, device=backend.device)
            torch.jit.save(scripted, tmp_path / "scripted.pt")
            loaded = torch.jit.load(tmp_path / "scripted.pt")
            assert_close([scripted(x), loaded(x)], [model(x)] * 2)


def scripted_function(x: Tensor, w: Tensor) -> Tensor:
    return convsmith.conv2d(x, w, padding=1, stride=[2, 2])


@WAYS
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_of_a_function(backend):
    scripted = torch.jit.script(scripted_function)
    x, w = (torch.randn(shape, device=backend.device) for shape in ((2, 3, 9, 7), (4, 3, 3, 3)))
    assert_close([scripted(x, w)], [F.conv2d(x, w, padding=1, stride=2)])


@WAYS
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace(backend):
    model = Model(convsmith.Conv2d).to(backend.device)
    x = torch.randn(2, 3, 9, 10, device=backend.device)
    model(x)  # Remembered: the tracer is to be heeded all the same.
    traced = torch.jit.trace(model, (x,))
    assert "convsmith::" not in str(traced.inlined_graph)
    y = torch.randn(3, 3, 9, 10, device=backend.device)
    assert_close([traced(y)], [model(y)])
