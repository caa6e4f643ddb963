"""ConvTranspose2d and LazyConvTranspose2d in everything that is done with nn's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, prune

import convsmith

CONFIGURATIONS = [
    ((3, 8, 3), {}),
    ((3, 8, (3, 2)), {"stride": (2, 1), "padding": 1, "dilation": 2, "bias": False}),
    ((4, 8, 3), {"groups": 4, "stride": 3, "output_padding": (2, 1), "dtype": torch.float64}),
]


def pair(arguments: tuple[object, ...] = (3, 8, 3), **options: object) -> list[nn.ConvTranspose2d]:
    """ConvSmith's module and PyTorch's, made from equal seeds."""
    made = []
    for layer in (convsmith.ConvTranspose2d, nn.ConvTranspose2d):
        torch.manual_seed(0)
        made.append(layer(*arguments, **options))
    return made


def image(channels: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, channels, 5, 4, dtype=dtype)


@pytest.fixture(params=["pytorch", "simulator"], autouse=True)
def way(request):
    """On PyTorch's convolution, as on any CPU, and on ConvSmith's kernels."""
    if request.param == "pytorch":
        yield
    else:
        with convsmith.simulator(), convsmith.use_kernel("direct"):
            yield


@pytest.mark.parametrize(("arguments", "options"), CONFIGURATIONS)
def test_same_weights_from_the_same_seed(arguments, options):
    ours, theirs = pair(arguments, **options)
    assert isinstance(ours, nn.ConvTranspose2d)
    assert repr(ours) == repr(theirs)
    for (name, our), (their_name, their) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == their_name
        assert torch.equal(our, their)
    x = image(arguments[0], ours.weight.dtype)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))


@pytest.mark.parametrize("lazy", [False, True])
def test_draws_as_many_random_numbers_as_nn(lazy):
    states = []
    for layers in (convsmith, nn):
        torch.manual_seed(0)
        module = layers.LazyConvTranspose2d(8, 3) if lazy else layers.ConvTranspose2d(3, 8, 3)
        module(torch.ones(1, 3, 5, 5))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_only_forward_is_ours():
    """Everything else is nn.ConvTranspose2d's own, so that it stays so."""
    own = {name for name in vars(convsmith.ConvTranspose2d) if not name.startswith("__")}
    assert own == {"forward"}


def test_state_passes_between_ours_and_nn():
    ours, theirs = pair()
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight", "bias"]
    x = image()
    for source, target in ((ours, theirs), (theirs, ours)):
        with torch.no_grad():
            source.weight.normal_()
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close(target(x), source(x))


@pytest.mark.parametrize(
    "size", [(9, 8), [10, 8], torch.Size([10, 7]), (2, 8, 9, 7), [2, 8, 10, 8]], ids=str
)
def test_output_size(size):
    ours, theirs = pair(stride=2, padding=1)
    x = image()
    y = ours(x, size)
    assert y.shape == (2, 8, *size[-2:])
    torch.testing.assert_close(y, theirs(x, size))
    torch.testing.assert_close(ours(x[0], output_size=size[-2:]), theirs(x[0], size[-2:]))


@pytest.mark.parametrize("size", [(8, 8), (11, 8), (9,), (1, 2, 8, 9, 8), (9, 10)], ids=str)
def test_output_sizes_that_cannot_be(size):
    messages = []
    for module in pair(stride=2, padding=1):
        with pytest.raises(ValueError, match=r"output.size") as error:
            module(image(), size)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_padding_modes_that_there_are_not():
    messages = []
    for layer in (convsmith.ConvTranspose2d, nn.ConvTranspose2d):
        with pytest.raises(ValueError, match="zeros") as error:
            layer(3, 8, 3, padding_mode="reflect")
        messages.append(str(error.value))
        module = layer(3, 8, 3)
        module.padding_mode = "circular"
        with pytest.raises(ValueError, match="Only `zeros` padding mode is supported") as error:
            module(image())
        messages.append(str(error.value))
    assert messages[:2] == messages[2:]


@pytest.mark.parametrize(
    "options", [{"groups": 0}, {"groups": 2}, {"out_channels": 5, "groups": 3}], ids=str
)
@pytest.mark.parametrize("name", ["ConvTranspose2d", "LazyConvTranspose2d"])
def test_constructor(name, options):
    arguments = {"out_channels": 6, "kernel_size": 3, **options}
    if name == "ConvTranspose2d":
        arguments["in_channels"] = 3

    def outcome(layers) -> tuple[type, str]:
        try:
            return type(getattr(layers, name)(**arguments)), ""
        except ValueError as error:
            return type(error), str(error)

    ours, theirs = outcome(convsmith), outcome(nn)
    if issubclass(theirs[0], ValueError):
        assert ours == theirs
    else:  # Neither looks at everything before the first input.
        assert issubclass(ours[0], theirs[0])


def test_copies():
    ours, _ = pair((4, 8, 3), groups=2, stride=2, output_padding=1)
    x = image(4)
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(again) is convsmith.ConvTranspose2d
        assert again.weight is not ours.weight
        assert torch.equal(again(x), ours(x))


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda module: prune.l1_unstructured(module, "weight", 0.5),
    ],
    ids=["weight_norm", "spectral_norm", "prune"],
)
def test_what_replaces_the_weight(wrap):
    x = image()
    results = []
    for module in pair():
        torch.manual_seed(1)
        wrapped = wrap(module)
        y = wrapped(x)
        gradients = torch.autograd.grad((y**2).sum(), list(wrapped.parameters()))
        results.append([y.detach(), *gradients])
    torch.testing.assert_close(*results)


def test_hooks_and_backward():
    outputs = []
    for module in pair(stride=2):
        seen: list[torch.Tensor] = []
        module.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        module.register_full_backward_hook(
            lambda module, given, upstream, seen=seen: seen.extend((*given, *upstream))
        )
        x = torch.linspace(-1, 1, 2 * 3 * 5 * 4).view(2, 3, 5, 4).requires_grad_()
        (module(x) ** 2).sum().backward()
        outputs.append([*seen, x.grad, module.weight.grad, module.bias.grad])
    torch.testing.assert_close(outputs[0], outputs[1])


def test_fusing_a_batch_norm():
    x = image()
    fused = []
    for module in pair():
        norm = nn.BatchNorm2d(8).eval()
        norm.running_mean = torch.linspace(-1, 1, 8)
        fused.append(fuse_conv_bn_eval(module.eval(), norm, transpose=True))
    assert type(fused[0]) is convsmith.ConvTranspose2d
    torch.testing.assert_close(fused[0](x), fused[1](x))


def test_functional_call_and_moving():
    ours, theirs = pair(stride=2)
    x = image()
    replaced = {name: torch.randn_like(value) for name, value in ours.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(ours, replaced, (x,)),
        torch.func.functional_call(theirs, replaced, (x,)),
    )
    torch.testing.assert_close(ours.double()(x.double()), theirs.double()(x.double()))
    assert ours.to_empty(device="meta")(x.to("meta", torch.float64)).shape == (2, 8, 11, 9)


def test_lazy_becomes_ours():
    ours, theirs = (
        layers.LazyConvTranspose2d(8, 3, stride=2, groups=1) for layers in (convsmith, nn)
    )
    assert isinstance(ours, (nn.LazyConvTranspose2d, convsmith.ConvTranspose2d))
    assert repr(ours) == repr(theirs)
    assert type(pickle.loads(pickle.dumps(ours))) is convsmith.LazyConvTranspose2d
    x = image(5)
    outputs = []
    for module in (ours, theirs):
        torch.manual_seed(0)
        outputs.append(module(x, [12, 9]))
    torch.testing.assert_close(*outputs)
    assert type(ours) is convsmith.ConvTranspose2d
    assert ours.in_channels == 5
    assert torch.equal(ours.weight, theirs.weight)
    lazy = convsmith.LazyConvTranspose2d(8, 3)
    lazy.load_state_dict(nn.ConvTranspose2d(3, 8, 3).state_dict())
    assert lazy(image()).shape == (2, 8, 7, 6)
