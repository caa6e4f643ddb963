"""PyTorch's own OpInfo for conv2d, against ConvSmith."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, references, results_and_gradients
from material import opinfo, samples, tensors_of
from running import backends
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import convsmith


@backends("operators", "simulator", "cuda")
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_results_and_gradients_of_every_sample(backend, dtype):
    cases = samples(backend.device, getattr(torch, dtype))
    assert len(cases) >= 30
    for sample in cases:
        ours = results_and_gradients(convsmith.conv2d, tensors_of(sample), **sample.kwargs)
        if backend.name == "operators":
            theirs = results_and_gradients(F.conv2d, tensors_of(sample), **sample.kwargs)
        else:
            theirs = references(tensors_of(sample), **sample.kwargs)
        assert_close(ours, theirs)
    assert backend.handed_over == 0


@backends("operators", "cuda")
@pytest.mark.parametrize("dtype", ["complex64", "complex128", "int64"])
def test_dtypes_that_are_pytorchs_alone(backend, dtype):
    if (backend.device, dtype) == ("cuda", "int64"):
        pytest.skip("PyTorch convolves no integers on a GPU")
    for sample in samples(backend.device, getattr(torch, dtype)):
        ours = convsmith.conv2d(*tensors_of(sample), **sample.kwargs)
        assert_close([ours], [F.conv2d(*tensors_of(sample), **sample.kwargs)])


@backends("operators", "simulator", "cuda")
def test_error_inputs(backend):
    errors = list(opinfo().error_inputs(backend.device))
    assert len(errors) >= 10
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            convsmith.conv2d(*tensors_of(sample), **sample.kwargs)


@backends("operators", "cuda")
def test_gradcheck_in_both_modes(backend):
    info = opinfo()
    for sample in samples(backend.device, torch.float64, requires_grad=True):
        tensors = tuple(tensor for tensor in tensors_of(sample) if tensor is not None)
        assert gradcheck(
            lambda *tensors, kwargs=sample.kwargs: convsmith.conv2d(*tensors, **kwargs),
            tensors,
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
            fast_mode=info.gradcheck_fast_mode,
            nondet_tol=info.gradcheck_nondet_tol,
        )


@backends("operators", "cuda")
def test_gradgradcheck_in_all_orders_of_the_modes(backend):
    info = opinfo()
    for sample in samples(backend.device, torch.float64, requires_grad=True):
        tensors = tuple(tensor for tensor in tensors_of(sample) if tensor is not None)
        assert gradgradcheck(
            lambda *tensors, kwargs=sample.kwargs: convsmith.conv2d(*tensors, **kwargs),
            tensors,
            gen_non_contig_grad_outputs=True,
            check_batched_grad=True,
            check_fwd_over_rev=True,
            check_rev_over_rev=True,
            fast_mode=info.gradcheck_fast_mode,
            nondet_tol=info.gradcheck_nondet_tol,
        )


@backends("simulator")
def test_gradcheck_of_simulated_kernels(backend):
    """A few samples: a simulated launch takes milliseconds, and a gradcheck many launches."""
    for sample in samples(backend.device, torch.float64, requires_grad=True)[2:15:4]:
        tensors = tuple(tensor for tensor in tensors_of(sample) if tensor is not None)
        assert gradcheck(
            lambda *tensors, kwargs=sample.kwargs: convsmith.conv2d(*tensors, **kwargs),
            tensors,
            check_forward_ad=True,
            fast_mode=True,
        )


@backends("operators", "cuda")
def test_opcheck_of_the_operators_as_they_are_called(backend):
    """Schema, autograd registration and FakeTensor for every sample; AOTDispatch for some."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "convsmith":
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    for sample in samples(backend.device, torch.float32):
        with Record():
            results_and_gradients(convsmith.conv2d, tensors_of(sample), **sample.kwargs)
    assert len(calls) >= 90
    for number, (func, args) in enumerate(calls):
        checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
        if number % 13 == 0:  # An odd step: all three operators, in turn.
            checks.append("test_aot_dispatch_dynamic")
        tensors = (
            arg.detach().requires_grad_() if isinstance(arg, torch.Tensor) else arg for arg in args
        )
        torch.library.opcheck(func, tuple(tensors), test_utils=checks)
