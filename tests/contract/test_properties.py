"""conv2d against F.conv2d over whatever hypothesis thinks of."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, references, results_and_gradients
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import Backend, backends
from torch import Tensor

import convsmith

# The fixture sets up the way to run, once for all examples.
SETTINGS = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
small = st.integers(1, 4)
pairs = st.one_of(small, st.tuples(small, small))


def random(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random numbers in memory of one of the kinds that callers have."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["plain", "permuted", "strided", "sliced", "expanded"]))
    if kind == "permuted":
        order = draw(st.permutations(range(len(shape))))
        tensor = torch.randn([shape[axis] for axis in order], generator=generator)
        return tensor.to(dtype).permute([order.index(axis) for axis in range(len(shape))])
    if kind == "strided":
        steps = [draw(st.integers(1, 3)) for _ in shape]
        sizes = [size * step for size, step in zip(shape, steps, strict=True)]
        tensor = torch.randn(sizes, generator=generator).to(dtype)
        return tensor[tuple(slice(None, None, step) for step in steps)]
    if kind == "sliced":
        starts = [draw(st.integers(0, 2)) for _ in shape]
        sizes = [size + start + 1 for size, start in zip(shape, starts, strict=True)]
        tensor = torch.randn(sizes, generator=generator).to(dtype)
        window = zip(starts, shape, strict=True)
        return tensor[tuple(slice(start, start + size) for start, size in window)]
    if kind == "expanded":
        repeated = draw(st.integers(0, len(shape) - 1))
        sizes = [1 if axis == repeated else size for axis, size in enumerate(shape)]
        return torch.randn(sizes, generator=generator).to(dtype).expand(shape)
    return torch.randn(shape, generator=generator).to(dtype)


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[Tensor | None], dict[str, object]]:
    """Tensors and arguments of a convolution, all of them valid."""
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, multiplier = draw(small), draw(small)
    kernel = draw(st.tuples(small, small))
    stride, dilation = draw(pairs), draw(pairs)
    padding = draw(
        st.one_of(st.integers(0, 3), st.tuples(st.integers(0, 3), st.integers(0, 3)),
                  st.sampled_from(["valid", "same"]))
    )  # fmt: skip
    if padding == "same":
        stride = 1
    beside = (0, 0) if isinstance(padding, str) else padding
    sizes = []
    for axis in (0, 1):
        rate = dilation if isinstance(dilation, int) else dilation[axis]
        border = beside if isinstance(beside, int) else beside[axis]
        fitting = max(1, rate * (kernel[axis] - 1) + 1 - 2 * border)
        sizes.append(fitting + draw(st.integers(0, 6)))
    batch = draw(st.sampled_from([(), (1,), (2,), (3,)]))
    shapes = (*batch, channels * groups, *sizes), (multiplier * groups, channels, *kernel)
    tensors: list[Tensor | None] = [random(draw, shape, dtype) for shape in shapes]
    tensors.append(random(draw, shapes[1][:1], dtype) if draw(st.booleans()) else None)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return tensors, options


@backends("operators", "simulator", "cuda")
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@SETTINGS
@given(call=calls())
def test_results_and_gradients(backend: Backend, call):
    tensors, options = call
    tensors = [tensor if tensor is None else tensor.to(backend.device) for tensor in tensors]
    ours = results_and_gradients(convsmith.conv2d, tensors, **options)
    if backend.name == "operators":
        assert_close(ours, results_and_gradients(F.conv2d, tensors, **options))
    else:
        assert_close(ours, references(tensors, **options))
    assert backend.handed_over == 0


anything = st.one_of(
    st.integers(-2, 3),
    st.booleans(),
    st.none(),
    st.floats(-1, 2),
    st.sampled_from(["same", "valid", "other", ""]),
    st.lists(st.integers(-1, 3), max_size=3),
    st.tuples(st.integers(-1, 3), st.one_of(st.integers(-1, 3), st.booleans(), st.floats(0, 2))),
)
any_shape = st.lists(st.integers(0, 5), min_size=0, max_size=5)


@backends("operators", "simulator")
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(SETTINGS, max_examples=400)
@given(
    shapes=st.tuples(any_shape, any_shape, st.one_of(st.none(), any_shape)),
    likely=st.booleans(),
    options=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("stride", "padding", "dilation", "groups"), anything)
    ),
)
def test_whatever_is_wrong_is_wrong_alike(backend: Backend, shapes, likely, options):
    """Either both give the same result, or both raise the same type with the same words."""
    if likely:  # Tensors that go together, so that the options have their turn.
        shapes = ((2, 4, 5, 5), (4, 2 if options.get("groups") == 2 else 4, 2, 3), (4,))
    tensors = [None if shape is None else torch.ones(tuple(shape)) for shape in shapes]

    def outcome(function) -> object:
        try:
            return function(*tensors, **options)
        except (RuntimeError, TypeError) as error:
            words = str(error)
            return type(error), words if isinstance(error, RuntimeError) else words.split(" - ")[0]

    theirs, ours = outcome(F.conv2d), outcome(convsmith.conv2d)
    if isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor)
        torch.testing.assert_close(ours, theirs)
    else:
        assert ours == theirs


@backends("operators", "simulator")
@settings(SETTINGS, max_examples=60)
@given(call=calls(), factor=st.sampled_from([-2.0, 0.5, 4.0]))
def test_linear_in_the_input(backend: Backend, call, factor):
    """What no reference is needed for: conv(f x1 + x2) = f conv(x1) + conv(x2)."""
    (x, w, _), options = call
    x, w = x.double(), w.double()
    other = x.flip(-1)
    combined = convsmith.conv2d(factor * x + other, w, **options)
    apart = factor * convsmith.conv2d(x, w, **options) + convsmith.conv2d(other, w, **options)
    scale = max(1.0, apart.abs().max().item()) * math.sqrt(w[0].numel())
    torch.testing.assert_close(combined, apart, rtol=1e-10, atol=1e-12 * scale)
