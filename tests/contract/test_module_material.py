"""PyTorch's own test material for nn.Conv2d and nn.LazyConv2d, against ConvSmith's."""

from __future__ import annotations

import copy
import pickle
from functools import cache
from typing import Any

import pytest
import torch
from comparison import assert_close, upstream_of
from material import internal
from running import backends
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import convsmith

CONFIGURATIONS = (
    "",
    "strided",
    "padding",
    "dilated",
    "no_bias",
    "zero_batch",
    "groups",
    "groups_thnn",
    "pad_valid",
    "pad_same",
    "pad_same_dilated",
    "depthwise",
    "depthwise_with_multiplier",
    "depthwise_strided",
    "depthwise_padded",
    "depthwise_dilated",
    "reflect_stride2_pad2",
    "circular_stride2_pad2",
    "replicate_stride2_pad2",
    "zeros_stride2_pad2",
)


@cache
def configurations() -> dict[str, dict[str, Any]]:
    """common_nn's Conv2d configurations by name."""
    tests = internal("common_nn").get_new_module_tests()
    return {
        test.get("fullname", f"Conv2d_{test.get('desc', '')}").removeprefix("Conv2d_"): test
        for test in tests
        if test.get("module_name", test.get("fullname", "")).split("_")[0] == "Conv2d"
    }


def build(test: dict[str, Any], layer: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The configuration's module, with ``layer`` for nn.Conv2d."""
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(nn, "Conv2d", layer)
        if "constructor" in test:
            return test["constructor"]()
        return layer(*test["constructor_args"])


def test_no_configuration_is_missing():
    assert set(configurations()) == set(CONFIGURATIONS)


@backends("operators", "simulator", "cuda")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration(backend, monkeypatch, name):
    test = configurations()[name]
    ours = build(test, convsmith.Conv2d, monkeypatch).to(backend.device)
    theirs = build(test, nn.Conv2d, monkeypatch).to(backend.device)
    assert type(ours) is convsmith.Conv2d
    assert repr(ours) == repr(theirs)
    assert_close(list(ours.state_dict().values()), list(theirs.state_dict().values()))

    results = []
    for module in (ours, theirs):
        x = torch.randn(
            test["input_size"], generator=torch.Generator().manual_seed(2), requires_grad=True
        )
        y = module(x.to(backend.device))
        leaves = [x, *module.parameters()]
        results.append([y.detach(), *torch.autograd.grad(y, leaves, upstream_of(y))])
    assert_close(*results)
    # There is nothing to compute in an empty batch, and no kernel need be asked.
    assert backend.handed_over == 0 or 0 in test["input_size"]


@backends("operators", "cuda")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_gradients_of_configuration(backend, monkeypatch, name):
    test = configurations()[name]
    module = build(test, convsmith.Conv2d, monkeypatch).to(backend.device, torch.float64)
    x = torch.randn(
        test["input_size"], dtype=torch.float64, device=backend.device, requires_grad=True
    )
    names, parameters = zip(*module.named_parameters(), strict=True)

    def apply(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), x)

    assert gradcheck(apply, (x, *parameters), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(apply, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("name", ["Conv2d", "LazyConv2d"])
@backends("operators", "simulator", "cuda")
def test_module_info(backend, name):
    """module_db: construction, forward, state, pickling and copying, as for nn's module."""
    modules = internal("common_modules").module_db
    info = next(info for info in modules if info.module_cls is getattr(nn, name))
    layer = getattr(convsmith, name)
    cases = info.module_inputs_func(
        info, backend.device, torch.float32, requires_grad=True, training=True
    )
    assert len(cases) >= 4
    for case in cases:
        made = []
        for of in (layer, info.module_cls):
            torch.manual_seed(0)
            made.append(of(*case.constructor_input.args, **case.constructor_input.kwargs))
        ours, theirs = (module.to(backend.device) for module in made)
        (x,) = case.forward_input.args
        torch.manual_seed(1)
        y = ours(x)
        torch.manual_seed(1)
        expected = theirs(x)
        assert type(ours) is convsmith.Conv2d
        gradients = [
            torch.autograd.grad(output, [x, *module.parameters()], upstream_of(output))
            for output, module in ((y, ours), (expected, theirs))
        ]
        assert_close([y, *gradients[0]], [expected, *gradients[1]])
        for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert type(again) is convsmith.Conv2d
            assert_close([again(x)], [y])
    assert backend.handed_over == 0
