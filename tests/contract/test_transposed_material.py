"""PyTorch's own test material for the transposed convolution, and whatever hypothesis thinks of."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, references, results_and_gradients, upstream_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from material import internal, opinfo, samples, tensors_of
from running import Backend, backends
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import convsmith

ALL = backends("operators", "simulator", "cuda")
WAYS = backends("operators", "cuda")
NAME = "conv_transpose2d"

# In 16 bits the result is rounded before the bias is added, as PyTorch has it on a GPU.
TOLERANCES = {torch.float16: 5e-3, torch.bfloat16: 4e-2}


def agree(backend: Backend, tensors: list[Tensor | None], options: dict[str, object]) -> None:
    """Output and gradients, against float64; and none of it handed to PyTorch's function."""
    ours = results_and_gradients(convsmith.conv_transpose2d, tensors, **options)
    theirs = references(tensors, F.conv_transpose2d, **options)
    assert backend.handed_over == 0
    atol = TOLERANCES.get(ours[0].dtype)
    if atol is None or backend.name != "operators":
        torch.testing.assert_close(ours, theirs, rtol=atol, atol=atol)
        return
    for our, their in zip(ours, theirs, strict=True):  # On a CPU, PyTorch rounds as it accumulates.
        assert our.dtype is their.dtype
        assert (our - their).norm() <= 5e-2 * their.norm()


# --- OpInfo.


@ALL
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_results_and_gradients_of_every_sample(backend, dtype):
    cases = samples(backend.device, getattr(torch, dtype), function=NAME)
    assert len(cases) >= 12
    for sample in cases:
        agree(backend, tensors_of(sample), sample.kwargs)


@WAYS
@pytest.mark.parametrize("dtype", ["complex64", "complex128", "int64"])
def test_dtypes_that_are_pytorchs_alone(backend, dtype):
    if (backend.device, dtype) == ("cuda", "int64"):
        pytest.skip("PyTorch convolves no integers on a GPU")
    for sample in samples(backend.device, getattr(torch, dtype), function=NAME):
        ours = convsmith.conv_transpose2d(*tensors_of(sample), **sample.kwargs)
        assert_close([ours], [F.conv_transpose2d(*tensors_of(sample), **sample.kwargs)])


@WAYS
def test_gradcheck_and_gradgradcheck_of_every_sample(backend):
    info = opinfo(NAME)
    for sample in samples(backend.device, torch.float64, requires_grad=True, function=NAME):
        tensors = tuple(tensor for tensor in tensors_of(sample) if tensor is not None)

        def of(*tensors, kwargs=sample.kwargs):
            return convsmith.conv_transpose2d(*tensors, **kwargs)

        assert gradcheck(
            of,
            tensors,
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
            fast_mode=True,
            nondet_tol=info.gradcheck_nondet_tol,
        )
        assert gradgradcheck(
            of,
            tensors,
            gen_non_contig_grad_outputs=True,
            check_batched_grad=True,
            check_fwd_over_rev=True,
            check_rev_over_rev=True,
            fast_mode=True,
            nondet_tol=info.gradcheck_nondet_tol,
        )
    assert backend.handed_over == 0


@backends("simulator")
def test_gradgradcheck_of_simulated_kernels(backend):
    for sample in samples(backend.device, torch.float64, requires_grad=True, function=NAME)[:7:2]:
        tensors = tuple(tensor for tensor in tensors_of(sample) if tensor is not None)
        assert gradgradcheck(
            lambda *tensors, kwargs=sample.kwargs: convsmith.conv_transpose2d(*tensors, **kwargs),
            tensors,
            fast_mode=True,
        )


# --- common_nn, module_db.

CONFIGURATIONS = ("", "dilated", "no_bias", "groups")


def configurations() -> dict[str, dict[str, object]]:
    """common_nn's ConvTranspose2d configurations by name."""
    return {
        test.get("desc") or test.get("fullname", "_").split("_")[1]: test
        for test in internal("common_nn").get_new_module_tests()
        if "ConvTranspose2d" in (test.get("module_name"), test.get("fullname", "").split("_")[0])
    }


def test_no_configuration_is_missing():
    assert set(configurations()) == set(CONFIGURATIONS)


@ALL
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration(backend, monkeypatch, name):
    test = configurations()[name]
    results = []
    for layer in (convsmith.ConvTranspose2d, nn.ConvTranspose2d):
        torch.manual_seed(0)
        with monkeypatch.context() as patch:
            patch.setattr(nn, "ConvTranspose2d", layer)
            made = test.get("constructor", lambda: layer(*test["constructor_args"]))  # noqa: B023
            module = made().to(backend.device)
        assert type(module) is layer
        x = torch.randn(test["input_size"]).to(backend.device).requires_grad_()
        y = module(x)
        leaves = [x, *module.parameters()]
        results.append([y.detach(), *torch.autograd.grad(y, leaves, upstream_of(y))])
    assert_close(*results)
    assert backend.handed_over == 0


@ALL
@pytest.mark.parametrize("name", ["ConvTranspose2d", "LazyConvTranspose2d"])
def test_module_info(backend, name):
    """module_db: construction, forward, state, pickling and copying, as for nn's module."""
    modules = internal("common_modules").module_db
    info = next(info for info in modules if info.module_cls is getattr(nn, name))
    cases = info.module_inputs_func(
        info, backend.device, torch.float32, requires_grad=True, training=True
    )
    assert len(cases) >= 2
    for case in cases:
        results = []
        for of in (getattr(convsmith, name), info.module_cls):
            torch.manual_seed(0)
            module = of(*case.constructor_input.args, **case.constructor_input.kwargs)
            module = module.to(backend.device)
            (x,) = case.forward_input.args
            torch.manual_seed(1)
            y = module(x)
            leaves = [x, *module.parameters()]
            results.append([y, *torch.autograd.grad(y, leaves, upstream_of(y))])
            for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
                assert type(again) is type(module)
                assert_close([again(x)], [y])
        assert_close(*results)
    assert backend.handed_over == 0


# --- hypothesis.

# The fixture sets up the way to run, once for all examples.
SETTINGS = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
small = st.integers(1, 4)
pairs = st.tuples(small, small)


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[Tensor | None], dict[str, object]]:
    """Tensors and arguments of a transposed convolution, all of them valid."""
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel, stride, dilation, size = (draw(pairs) for _ in range(4))
    added, padding = [], []
    for axis in (0, 1):
        added.append(draw(st.integers(0, max(stride[axis], dilation[axis]) - 1)))
        whole = (size[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + added[axis]
        padding.append(draw(st.integers(0, min(3, whole // 2))))
    batch = draw(st.sampled_from([(), (1,), (3,)]))
    weight_shape = (draw(small) * groups, draw(small), *kernel)
    shapes = [(*batch, weight_shape[0], *size), weight_shape, (weight_shape[1] * groups,)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    if len(batch) == 1 and draw(st.booleans()):
        tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    if draw(st.booleans()):
        tensors[1] = tensors[1].transpose(2, 3).contiguous().transpose(2, 3)
    bias = tensors[2] if draw(st.booleans()) else None
    options = {"stride": stride, "padding": tuple(padding), "output_padding": tuple(added)}
    return [*tensors[:2], bias], {**options, "groups": groups, "dilation": dilation}


@ALL
@SETTINGS
@given(call=calls())
def test_results_and_gradients(backend: Backend, call):
    tensors, options = call
    tensors = [tensor if tensor is None else tensor.to(backend.device) for tensor in tensors]
    agree(backend, tensors, options)


@ALL
@SETTINGS
@given(call=calls())
def test_adjoint_of_the_convolution(backend: Backend, call):
    """What no reference is needed for: sum(x * conv2d(y, w)) = sum(y * conv_transpose2d(x, w))."""
    (x, w, _), options = call
    x, w = x.double().to(backend.device), w.double().to(backend.device)
    result = convsmith.conv_transpose2d(x, w, **options)
    y = upstream_of(result)
    added = options.pop("output_padding")
    convolved = convsmith.conv2d(y, w, **options)
    # What is added by whole strides makes rows of the convolution that x has none for.
    assert all(
        convolved.shape[axis - 2] == x.shape[axis - 2] + added[axis] // options["stride"][axis]
        for axis in (0, 1)
    )
    convolved = convolved[..., : x.shape[-2], : x.shape[-1]]
    torch.testing.assert_close((x * convolved).sum(), (y * result).sum(), rtol=1e-9, atol=1e-9)


anything = st.one_of(
    st.integers(-2, 3),
    st.booleans(),
    st.none(),
    st.floats(-1, 2),
    st.lists(st.integers(-1, 3), max_size=3),
    st.tuples(st.integers(-1, 3), st.one_of(st.integers(-1, 3), st.booleans(), st.floats(0, 2))),
)
any_shape = st.lists(st.integers(0, 5), min_size=0, max_size=5)


@backends("operators", "simulator")
@settings(SETTINGS, max_examples=300)
@given(
    shapes=st.tuples(any_shape, any_shape, st.one_of(st.none(), any_shape)),
    likely=st.booleans(),
    options=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("stride", "padding", "output_padding", "dilation", "groups"), anything
        ),
    ),
)
def test_whatever_is_wrong_is_wrong_alike(backend: Backend, shapes, likely, options):
    """Either both give the same result, or both raise the same type, with the same words.

    Where they are about the type of an argument, they depend on whether it is given by position.
    """
    if likely:  # Tensors that go together, so that the options have their turn.
        shapes = ((2, 4, 5, 5), (4, 4, 2, 3), (8 if options.get("groups") == 2 else 4,))
    tensors = [None if shape is None else torch.ones(tuple(shape)) for shape in shapes]

    def outcome(function) -> object:
        try:
            return function(*tensors, **options)
        except (RuntimeError, TypeError) as error:
            return type(error), str(error) if isinstance(error, RuntimeError) else ""

    theirs, ours = outcome(F.conv_transpose2d), outcome(convsmith.conv_transpose2d)
    if isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor)
        torch.testing.assert_close(ours, theirs)
    else:
        assert ours == theirs
