"""Conv2d and LazyConv2d in everything that is done with an nn.Conv2d."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import convsmith

CONFIGURATIONS = [
    ((3, 8, 3), {}),
    ((3, 8, (3, 2)), {"stride": (2, 1), "padding": 1, "dilation": 2, "bias": False}),
    ((4, 8, 3), {"groups": 4, "padding": "same", "padding_mode": "reflect"}),
    ((4, 8, 3), {"padding": "valid", "dtype": torch.float64, "device": "cpu"}),
]


def pair(arguments: tuple[object, ...] = (3, 8, 3), **options: object) -> list[nn.Conv2d]:
    """ConvSmith's module and PyTorch's, made from equal seeds."""
    made = []
    for layer in (convsmith.Conv2d, nn.Conv2d):
        torch.manual_seed(0)
        made.append(layer(*arguments, **options))
    return made


def image(channels: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, channels, 9, 8, dtype=dtype)


@pytest.mark.parametrize(("arguments", "options"), CONFIGURATIONS)
def test_same_weights_from_the_same_seed(arguments, options):
    ours, theirs = pair(arguments, **options)
    assert isinstance(ours, nn.Conv2d)
    assert repr(ours) == repr(theirs)
    assert ours.extra_repr() == theirs.extra_repr()
    for (name, our), (their_name, their) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == their_name
        assert torch.equal(our, their)
    x = image(arguments[0], ours.weight.dtype)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("lazy", [False, True])
def test_draws_as_many_random_numbers_as_nn(lazy):
    states = []
    for layers in (convsmith, nn):
        torch.manual_seed(0)
        module = layers.LazyConv2d(8, 3) if lazy else layers.Conv2d(3, 8, 3)
        module(torch.ones(1, 3, 5, 5))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_only_conv_forward_is_ours():
    """Everything else is nn.Conv2d's own, so that it stays so."""
    own = {name for name in vars(convsmith.Conv2d) if not name.startswith("__")}
    assert own == {"_conv_forward"}


def test_state_passes_between_ours_and_nn():
    ours, theirs = pair()
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight", "bias"]
    x = image()
    for source, target in ((ours, theirs), (theirs, ours)):
        with torch.no_grad():
            source.weight.normal_()
        target.load_state_dict(source.state_dict())
        assert torch.equal(target.weight, source.weight)
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    ours.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol):
    ours, _ = pair((4, 8, 3), groups=2, padding="same", padding_mode="circular")
    again = pickle.loads(pickle.dumps(ours, protocol))
    assert type(again) is convsmith.Conv2d
    x = image(4)
    assert torch.equal(again(x), ours(x))


def test_deepcopy_and_save():
    ours, _ = pair()
    x = image()
    copied = copy.deepcopy(ours)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for again in (copied, loaded):
        assert type(again) is convsmith.Conv2d
        assert again.weight is not ours.weight
        assert torch.equal(again(x), ours(x))


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        pytest.param(
            old_weight_norm, marks=pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
        ),
        old_spectral_norm,
        lambda module: prune.l1_unstructured(module, "weight", 0.5),
        lambda module: parametrize.register_parametrization(module, "weight", nn.Tanh()),
    ],
    ids=["weight_norm", "spectral_norm", "old weight_norm", "old spectral_norm", "prune", "tanh"],
)
def test_what_replaces_the_weight(wrap):
    x = image()
    outputs, gradients = [], []
    for module in pair():
        torch.manual_seed(1)
        wrapped = wrap(module)
        y = wrapped(x)
        outputs.append(y.detach())
        gradients.append(torch.autograd.grad((y**2).sum(), list(wrapped.parameters())))
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_functional_call_and_swapped_parameters():
    ours, theirs = pair()
    x = image()
    replaced = {name: torch.randn_like(value) for name, value in ours.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(ours, replaced, (x,)),
        torch.func.functional_call(theirs, replaced, (x,)),
    )


def test_moving_casting_and_sharing():
    ours, theirs = pair()
    x = image()
    torch.testing.assert_close(ours.double()(x.double()), theirs.double()(x.double()))
    ours.to(memory_format=torch.channels_last)
    theirs.to(memory_format=torch.channels_last)
    y, expected = ours(x.double()), theirs(x.double())
    assert y.stride() == expected.stride()
    assert ours.to_empty(device="meta")(x.to("meta", torch.float64)).shape == y.shape
    first, second = pair()[0], pair()[0]
    second.weight = first.weight
    assert second.weight is first.weight


def test_hooks_and_backward():
    outputs = []
    for module in pair():
        seen: list[torch.Tensor] = []
        module.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        module.register_full_backward_hook(
            lambda module, given, upstream, seen=seen: seen.extend((*given, *upstream))
        )
        x = torch.linspace(-1, 1, 2 * 3 * 9 * 8).view(2, 3, 9, 8).requires_grad_()
        (module(x) ** 2).sum().backward()
        outputs.append([*seen, x.grad, module.weight.grad, module.bias.grad])
    torch.testing.assert_close(outputs[0], outputs[1])


def test_fusing_a_batch_norm():
    x = image()
    fused = []
    for module in pair():
        norm = nn.BatchNorm2d(8).eval()
        norm.running_mean = torch.linspace(-1, 1, 8)
        fused.append(fuse_conv_bn_eval(module.eval(), norm))
    assert type(fused[0]) is convsmith.Conv2d
    torch.testing.assert_close(fused[0](x), fused[1](x))


def test_learns_like_nn():
    """A few steps of a small model: the same losses."""
    losses = []
    for layer in (convsmith.Conv2d, nn.Conv2d):
        torch.manual_seed(0)
        model = nn.Sequential(
            layer(3, 8, 3), nn.ReLU(), layer(8, 4, 3, groups=2), nn.Flatten(), nn.LazyLinear(2)
        )
        x, goal = image(), torch.tensor([0, 1])
        model(x)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), goal)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    torch.testing.assert_close(losses[:4], losses[4:])
    assert losses[3] < losses[0]


# --- LazyConv2d.


def test_lazy_becomes_ours():
    ours, theirs = (layers.LazyConv2d(8, 3, padding=1, groups=1) for layers in (convsmith, nn))
    assert isinstance(ours, (nn.LazyConv2d, convsmith.Conv2d))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = image(5)
    outputs = []
    for module in (ours, theirs):
        torch.manual_seed(0)
        outputs.append(module(x))
    torch.testing.assert_close(*outputs)
    assert type(ours) is convsmith.Conv2d
    assert ours.in_channels == 5
    assert torch.equal(ours.weight, theirs.weight)
    assert repr(ours) == repr(theirs)


def test_lazy_takes_a_state_or_refuses_an_input():
    ours = convsmith.LazyConv2d(8, 3)
    ours.load_state_dict(nn.Conv2d(3, 8, 3).state_dict())
    assert ours(image()).shape == (2, 8, 7, 6)
    for layers in (convsmith, nn):
        with pytest.raises(RuntimeError, match=r"3D .* or 4D"):
            layers.LazyConv2d(8, 3)(torch.ones(2, 3))


def test_lazy_pickles_before_and_after():
    for seen in (False, True):
        ours = convsmith.LazyConv2d(8, 3)
        if seen:
            ours(image())
        again = pickle.loads(pickle.dumps(ours))
        assert type(again) is type(ours)
        assert again(image()).shape == (2, 8, 7, 6)
