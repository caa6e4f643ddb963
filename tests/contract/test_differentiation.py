"""Gradients of every order and mode, and that no more is computed than was asked for."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close
from running import backends
from torch import Tensor, func, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import convsmith
from convsmith import execute

ALL = backends("operators", "simulator", "cuda")
ARGUMENTS = ((2, 1), (1, 0), (1, 2), 2)


def operands(device: str, batch: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (2, 4, 5, 6), (6, 2, 3, 2), (6,)
    x, w, b = (torch.randn((*batch, *shape), dtype=torch.float64) for shape in shapes)
    return x.to(device), w.to(device), b.to(device)


def conv(function, *arguments):
    """``function`` of input, weight and bias alone."""
    return lambda x, w, b: function(x, w, b, *(arguments or ARGUMENTS))


def nonlinear(function, upstream: Tensor):
    """A scalar whose every derivative up to the third is worth looking at."""
    return lambda x, w, b: (conv(function)(x, w, b) ** 3 * upstream).sum()


def upstream(device: str) -> Tensor:
    return torch.randn(2, 6, 3, 4, dtype=torch.float64).to(device)


def agree(transform) -> None:
    """``transform`` of ConvSmith's convolution and of PyTorch's: the same, and without a warning.

    (PyTorch's own vmap warns of a slow fallback where ours needs none.)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
        ours = transform(convsmith.conv2d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transform(F.conv2d)
    torch.testing.assert_close(ours, theirs)


# --- Reverse mode.


@ALL
@pytest.mark.parametrize("wanted", [*itertools.product((False, True), repeat=3)][1:])
def test_only_what_is_asked_for_is_computed(backend, wanted, monkeypatch):
    """One launch for each gradient that is needed; a bias alone needs none."""
    calls: list[str] = []

    def count(name):
        run = getattr(execute, name)

        def counted(*arguments):
            calls.append(name + (" and bias" if arguments[-1] is True else ""))
            return run(*arguments)

        monkeypatch.setattr(execute, name, counted)

    count("input_gradient")
    count("weight_gradient")
    g = upstream(backend.device)
    results = []
    tensors = operands(backend.device)
    for function in (convsmith.conv2d, F.conv2d):
        leaves = [
            tensor.clone().requires_grad_(flag)
            for tensor, flag in zip(tensors, wanted, strict=True)
        ]
        conv(function)(*leaves).backward(g)
        results.append([leaf.grad for leaf in leaves])
    assert [grad is not None for grad in results[0]] == list(wanted)
    assert_close(
        [grad for grad in results[0] if grad is not None],
        [grad for grad in results[1] if grad is not None],
    )
    x_wanted, w_wanted, b_wanted = wanted
    expected = ["input_gradient"] * x_wanted
    expected += ["weight_gradient" + " and bias" * b_wanted] * w_wanted
    assert calls == expected


@ALL
def test_second_and_third_derivatives(backend):
    g = upstream(backend.device)

    def derivatives(function):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        first = torch.autograd.grad(nonlinear(function, g)(*leaves), leaves, create_graph=True)
        second = torch.autograd.grad(
            sum((gradient**2).sum() for gradient in first), leaves, create_graph=True
        )
        third = torch.autograd.grad(sum((gradient**2).sum() for gradient in second), leaves)
        return [*first, *second, *third]

    tensors = operands(backend.device)
    agree(derivatives)


@ALL
@pytest.mark.parametrize("of", [0, 1, 2])
@pytest.mark.parametrize("by", [0, 1, 2, "upstream"])
def test_each_second_derivative_alone(backend, of, by):
    """The gradient of one tensor, differentiated by another: some of them are zero."""
    tensors = operands(backend.device)
    g = upstream(backend.device)

    def derivative(function):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        upstream_leaf = g.clone().requires_grad_()
        y = conv(function)(*leaves)
        (first,) = torch.autograd.grad(y, leaves[of], upstream_leaf, create_graph=True)
        variable = upstream_leaf if by == "upstream" else leaves[by]
        if not first.requires_grad:
            return "constant"
        (second,) = torch.autograd.grad(
            first, variable, torch.ones_like(first).cumsum(0), allow_unused=True
        )
        return "unused" if second is None else second

    ours, theirs = derivative(convsmith.conv2d), derivative(F.conv2d)
    zeros = [torch.zeros_like(g if by == "upstream" else tensors[by])]
    assert_close(
        zeros if isinstance(ours, str) else [ours],
        zeros if isinstance(theirs, str) else [theirs],
    )


@ALL
def test_gradients_accumulate_and_hooks_run(backend):
    def gradients(function):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        seen: list[Tensor] = []
        leaves[1].register_hook(lambda gradient: gradient * 2)
        leaves[0].register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad.clone()))
        for _ in range(2):
            y = conv(function)(*leaves)
            y.register_hook(lambda gradient: gradient + 1)
            y.backward(g)
        return [*(leaf.grad for leaf in leaves), *seen]

    tensors, g = operands(backend.device), upstream(backend.device)
    agree(gradients)


@ALL
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(backend, use_reentrant):
    def gradients(function):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        y = checkpoint(conv(function), *leaves, use_reentrant=use_reentrant)
        return torch.autograd.grad(y, leaves, g) if not use_reentrant else backward(y, leaves)

    def backward(y, leaves):
        y.backward(g)
        return [leaf.grad for leaf in leaves]

    tensors, g = operands(backend.device), upstream(backend.device)
    agree(gradients)


@ALL
def test_saved_tensors_go_through_hooks(backend):
    """Offloading, for example: what is saved is what autograd's hooks see."""
    tensors = [tensor.requires_grad_() for tensor in operands(backend.device)]
    packed: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tuple(tensor.shape))
        return tensor.detach().clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = conv(convsmith.conv2d)(*tensors)
    assert packed == [(2, 4, 5, 6), (6, 2, 3, 2)]
    g = upstream(backend.device)
    theirs = torch.autograd.grad(conv(F.conv2d)(*tensors), tensors, g)
    assert_close(torch.autograd.grad(y, tensors, g), theirs)


@ALL
def test_changing_a_saved_tensor_is_an_error(backend):
    x, w, b = (tensor.requires_grad_() for tensor in operands(backend.device))
    y = conv(convsmith.conv2d)(x, w, b)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@ALL
def test_no_grad_and_inference_mode(backend):
    x, w, b = (tensor.requires_grad_() for tensor in operands(backend.device))
    expected = conv(F.conv2d)(x, w, b).detach()
    with torch.no_grad():
        y = conv(convsmith.conv2d)(x, w, b)
    assert not y.requires_grad
    assert_close([y], [expected])
    with torch.inference_mode():
        y = conv(convsmith.conv2d)(x, w, b)
        again = conv(convsmith.conv2d)(x.clone(), w, b)
    assert y.is_inference()
    assert_close([y, again], [expected, expected])
    z = conv(convsmith.conv2d)(x, w, b)
    assert z.requires_grad


# --- Forward mode, by value: a zero tangent is the known trap.


@ALL
@pytest.mark.parametrize("dual", [*itertools.product((False, True), repeat=3)][1:])
def test_tangents(backend, dual):
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
    assert tangent(convsmith.conv2d)[1].abs().max() > 0.1


@ALL
def test_tangents_are_differentiable(backend):
    """Reverse over forward, without functorch."""
    tensors, g = operands(backend.device), upstream(backend.device)

    def gradients(function):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        directions = [tensor.cos().requires_grad_() for tensor in tensors]
        with forward_ad.dual_level():
            made = map(forward_ad.make_dual, leaves, directions)
            primal, tangent = forward_ad.unpack_dual(conv(function)(*made))
            return torch.autograd.grad(((primal**2 + tangent**2) * g).sum(), [*leaves, *directions])

    agree(gradients)


# --- functorch.


@ALL
@pytest.mark.parametrize(
    "transform",
    [
        lambda f, tensors: func.grad(f, (0, 1, 2))(*tensors),
        lambda f, tensors: func.vjp(f, *tensors)[1](tensors[0].new_ones(())),
        lambda f, tensors: func.jvp(f, tensors, tuple(tensor.cos() for tensor in tensors)),
        lambda f, tensors: func.jvp(
            lambda *inner: func.jvp(f, inner, tuple(tensor.sin() for tensor in inner))[1],
            tensors,
            tuple(tensor.cos() for tensor in tensors),
        ),
        lambda f, tensors: func.grad(
            lambda *inner: sum((g**2).sum() for g in func.grad(f, (0, 1, 2))(*inner)), (0, 1, 2)
        )(*tensors),
        lambda f, tensors: func.jvp(
            func.grad(f, (0, 1, 2)), tensors, tuple(tensor.cos() for tensor in tensors)
        ),
    ],
    ids=["grad", "vjp", "jvp", "jvp of jvp", "grad of grad", "jvp of grad"],
)
def test_transforms(backend, transform):
    tensors, g = operands(backend.device), upstream(backend.device)
    agree(lambda function: tuple(transform(nonlinear(function, g), tensors)))


@backends("operators", "cuda")
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_hessian(backend, argument):
    tensors, g = operands(backend.device), upstream(backend.device)
    agree(lambda function: func.hessian(nonlinear(function, g), argument)(*tensors))


@backends("operators", "cuda")
@pytest.mark.parametrize("outer", [func.jacrev, func.jacfwd])
@pytest.mark.parametrize("inner", [func.jacrev, func.jacfwd])
def test_jacobians(backend, outer, inner):
    tensors, g = operands(backend.device), upstream(backend.device)
    everything = (0, 1, 2)
    agree(lambda function: inner(conv(function), everything)(*tensors))
    agree(lambda function: outer(inner(nonlinear(function, g), everything), everything)(*tensors))


MAPPED = [*itertools.product((None, 0), repeat=3)][1:]


@ALL
@pytest.mark.parametrize("in_dims", MAPPED)
def test_vmap(backend, in_dims):
    """Every combination of mapped tensors, differentiated inside and outside; no slow fallback."""
    single, many = operands(backend.device), operands(backend.device, (3,))
    tensors = [
        one if dim is None else all_ for one, all_, dim in zip(single, many, in_dims, strict=True)
    ]
    g = upstream(backend.device)
    agree(lambda function: func.vmap(conv(function), in_dims)(*tensors))
    agree(
        lambda function: func.vmap(func.grad(nonlinear(function, g), (0, 1, 2)), in_dims)(*tensors)
    )
    agree(
        lambda function: func.grad(
            lambda *inner: (func.vmap(conv(function), in_dims)(*inner) ** 3).sum(), (0, 1, 2)
        )(*tensors)
    )


@backends("operators", "cuda")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("in_dims", [(4, 1, 1), (1, 2, None), (None, 3, 0), (2, None, None)])
def test_vmap_over_any_dimension(backend, in_dims, groups):
    shapes = (2, 4, 5, 6), (6, 4 // groups, 3, 2), (6,)
    tensors = [
        torch.randn(shape if dim is None else (*shape[:dim], 3, *shape[dim:]), dtype=torch.float64)
        for shape, dim in zip(shapes, in_dims, strict=True)
    ]
    tensors = [tensor.to(backend.device) for tensor in tensors]
    agree(
        lambda function: func.vmap(conv(function, 1, 1, 1, groups), in_dims, out_dims=2)(*tensors)
    )


@backends("operators", "cuda")
@pytest.mark.parametrize("outer", [(0, None, None), (None, 0, 0), (0, 0, 0)])
@pytest.mark.parametrize("inner", [(0, None, None), (None, 0, None), (0, 0, 0)])
def test_vmap_of_vmap(backend, outer, inner):
    tensors = []
    for place, shape in enumerate(((2, 4, 5, 6), (6, 2, 3, 2), (6,))):
        leading = [size for size, dims in ((3, outer), (2, inner)) if dims[place] is not None]
        tensors.append(torch.randn((*leading, *shape), dtype=torch.float64).to(backend.device))
    agree(lambda function: func.vmap(func.vmap(conv(function), inner), outer)(*tensors))


@ALL
def test_per_sample_gradients_of_a_model(backend):
    def gradients(layer):
        torch.manual_seed(0)
        model = nn.Sequential(
            layer(3, 4, 3, padding=1), nn.Tanh(), layer(4, 4, 3, stride=2, groups=2), nn.Flatten()
        ).to(backend.device, torch.float64)
        parameters = {name: value.detach() for name, value in model.named_parameters()}

        def loss(parameters, sample):
            return (func.functional_call(model, parameters, (sample[None],)) ** 2).sum()

        return func.vmap(func.grad(loss), (None, 0))(parameters, samples)

    samples = torch.randn(5, 3, 6, 7, dtype=torch.float64).to(backend.device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = gradients(convsmith.Conv2d)
    torch.testing.assert_close(ours, gradients(nn.Conv2d))


@ALL
def test_ensemble_of_models(backend):
    """Stacked weights: the mapped dimension folds into groups."""

    def outputs(layer):
        torch.manual_seed(0)
        models = [layer(3, 4, 3, padding=1).to(backend.device, torch.float64) for _ in range(4)]
        parameters, buffers = func.stack_module_state(models)

        def run(parameters, buffers, x):
            return func.functional_call(models[0], (parameters, buffers), (x,))

        return func.vmap(run, (0, 0, None))(parameters, buffers, x)

    x = torch.randn(2, 3, 6, 7, dtype=torch.float64).to(backend.device)
    torch.testing.assert_close(outputs(convsmith.Conv2d), outputs(nn.Conv2d))


@backends("operators", "cuda")
def test_linearize(backend):
    tensors = operands(backend.device)
    directions = [tensor.cos() for tensor in tensors]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of the graph it builds.
        output, linear = func.linearize(conv(convsmith.conv2d), *tensors)
    expected = func.jvp(conv(F.conv2d), tensors, tuple(directions))
    assert_close([output, linear(*directions)], list(expected))


@backends("operators", "cuda")
def test_expanded_weights(backend):
    """torch.nn.utils' other per-sample gradients take conv2d for what it is: PyTorch's."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    def gradients(layer):
        torch.manual_seed(0)
        model = layer(3, 4, 3, padding=1).to(backend.device, torch.float64)
        call_for_per_sample_grads(model, loss_reduction="sum")(samples).sum().backward()
        return [parameter.grad_sample for parameter in model.parameters()]

    samples = torch.randn(5, 3, 6, 7, dtype=torch.float64).to(backend.device)
    assert_close(gradients(convsmith.Conv2d), gradients(nn.Conv2d))
