"""What only a GPU can show: streams, graphs, several devices, memory, tensors beyond 2**31."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, results_and_gradients, upstream_of
from torch import Tensor, nn

import convsmith
from convsmith import Precision
from convsmith.bench.switches import precision_class

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def direct() -> Iterator[None]:
    """ConvSmith's own kernels, in float32 arithmetic."""
    with convsmith.use_kernel("direct"), precision_class(Precision.FLOAT32):
        yield
    gc.collect()
    torch.cuda.empty_cache()


def operands(device: str = "cuda", scale: int = 1) -> list[Tensor]:
    shapes = (4, 8, 17 * scale, 15 * scale), (16, 8, 3, 3), (16,)
    return [torch.randn(shape).to(device) for shape in shapes]


# --- Streams and graphs.


def test_on_the_current_stream():
    """What the stream is about to compute is waited for: by the launch, not by the host."""
    x, w, b = operands()
    expected = F.conv2d(x, w, b, padding=1)
    convsmith.conv2d(x, w, b, padding=1)
    late = torch.full_like(x, torch.nan)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(x)
        y = convsmith.conv2d(late, w, b, padding=1)
        assert not stream.query(), "the launch waited for the GPU"
    torch.cuda.current_stream().wait_stream(stream)
    assert_close([y], [expected])


def test_gradients_on_a_side_stream():
    # In float64: what is looked for is work that came too early, not rounding.
    tensors = [tensor.double() for tensor in operands()]
    expected = results_and_gradients(F.conv2d, tensors, padding=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        ours = results_and_gradients(convsmith.conv2d, tensors, padding=1)
    torch.cuda.current_stream().wait_stream(stream)
    assert_close(ours, expected)


def test_captured_in_a_graph():
    x, w, b = operands()
    convsmith.conv2d(x, w, b, padding=1)  # Compiled and loaded before.
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = convsmith.conv2d(x, w, b, padding=1)
    for _ in range(3):
        x.normal_()
        w.normal_()
        graph.replay()
        assert_close([y], [F.conv2d(x, w, b, padding=1)])


def test_a_training_step_captured_in_a_graph():
    models = []
    for layer in (convsmith.Conv2d, nn.Conv2d):
        torch.manual_seed(0)
        models.append(nn.Sequential(layer(8, 8, 3, padding=1), nn.ReLU(), layer(8, 4, 3)).cuda())
    x = torch.randn(2, 8, 16, 16, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(models[0], (x,))
    for _ in range(2):
        x = torch.randn(2, 8, 16, 16, device="cuda", requires_grad=True)
        results = []
        for run, model in ((graphed, models[0]), (models[1], models[1])):
            y = run(x)
            gradients = torch.autograd.grad(y, [x, *model.parameters()], upstream_of(y))
            results.append([y.detach().clone(), *(gradient.clone() for gradient in gradients)])
        assert_close(*results)


# --- Several GPUs.


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_another_gpu_than_the_current_one():
    tensors = operands()
    expected = results_and_gradients(F.conv2d, tensors, padding=1)
    ours = results_and_gradients(
        convsmith.conv2d, [tensor.to("cuda:1") for tensor in tensors], padding=1
    )
    assert torch.cuda.current_device() == 0
    assert {result.device for result in ours} == {torch.device("cuda:1")}
    assert_close([result.to("cuda:0") for result in ours], expected)
    with torch.cuda.device(1):
        assert_close(results_and_gradients(convsmith.conv2d, tensors, padding=1), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_data_parallel():
    models = []
    for layer in (convsmith.Conv2d, nn.Conv2d):
        torch.manual_seed(0)
        models.append(nn.Sequential(layer(8, 8, 3, padding=1), nn.ReLU(), layer(8, 4, 3)).cuda())
    x = torch.randn(4, 8, 16, 16, device="cuda")
    ours = nn.DataParallel(models[0], [0, 1])(x)
    theirs = models[1](x)
    assert_close([ours], [theirs])
    ours.backward(upstream_of(ours))
    theirs.backward(upstream_of(theirs))
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


# --- Memory.


def peak_beyond(before: int) -> int:
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_nothing_is_copied(layout):
    """Forward allocates its output; backward the gradients, and a small workspace at most."""
    x, w, b = operands(scale=16)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = torch.randn(*x.shape[:-1], 2 * x.shape[-1], device="cuda")[..., ::2]
    leaves = [tensor.requires_grad_() for tensor in (x, w, b)]
    y = convsmith.conv2d(*leaves, padding=1)  # Whatever the first call alone allocates.
    g = torch.randn_like(y)
    torch.autograd.grad(y, leaves, g)
    slack = 2**21
    del y
    gc.collect()

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = convsmith.conv2d(*leaves, padding=1)
    assert peak_beyond(before) <= y.nbytes + slack

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradients = torch.autograd.grad(y, leaves, g)
    workspace = x.nbytes // 4
    assert peak_beyond(before) <= sum(t.nbytes for t in gradients) + workspace + slack
    expected = torch.autograd.grad(F.conv2d(*leaves, padding=1), leaves, g)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-2)


def test_more_elements_than_32_bits_count():
    """Every tensor but the weight beyond 2**31 elements; what is looked at lies beyond, too."""
    rows, columns = 2**16 + 64, 2**15 + 8
    last = 24
    x = torch.zeros(1, 1, rows, columns, dtype=torch.float16, device="cuda")
    assert x.numel() > 2**31
    x[:, :, -last:].normal_(0, 0.05)
    w = torch.randn(1, 1, 3, 3, dtype=torch.float16, device="cuda")
    y = torch.ops.convsmith.conv2d(x, w, None, (1, 1), (1, 1), (1, 1), 1)
    end = x[:, :, -last:].double()
    expected = F.conv2d(end, w.double(), padding=1)
    assert_close([y[:, :, 1 - last :]], [expected[:, :, 1:].half()])
    assert not y[:, :, : -last - 1].any()

    # The upstream gradient is y itself: zero but for its end.
    arguments = ((1, 1), (1, 1), (1, 1), 1)
    gradient, _ = torch.ops.convsmith.conv2d_weight_gradient(y, x, w, *arguments, False)
    beyond = torch.zeros(1, 1, 4, columns, dtype=torch.float64, device="cuda")
    x_end = torch.cat([beyond, end], 2).requires_grad_()
    w_exact = w.double().requires_grad_()
    exact = F.conv2d(x_end, w_exact, padding=1)
    upstream = torch.cat([beyond[:, :, 1:], y[:, :, -last - 1 :].double()], 2)
    x_grad, w_grad = torch.autograd.grad(exact, (x_end, w_exact), upstream)
    torch.testing.assert_close(gradient, w_grad.half(), rtol=5e-3, atol=1e-1)
    del x
    like = y.new_empty(()).expand(y.shape)
    gradient = torch.ops.convsmith.conv2d_input_gradient(y, w, like, *arguments)
    assert_close([gradient[:, :, 3 - last :]], [x_grad[:, :, 7:].half()])
    assert not gradient[:, :, : -last - 2].any()
