"""The core suite is complete and its layers the published ones; the sweep covers what it says."""

from __future__ import annotations

import pytest
import torch

from convsmith.bench.suites import (
    CORE,
    DENSE,
    DEPTHWISE,
    DIRECTIONS,
    DTYPE,
    PRECISIONS,
    Layer,
    Layout,
)
from convsmith.spec import Direction, Precision

KERNELBENCH = {f"kb{number}" for number in (50, 55, 56, 62, 63, 80, 82, 83, 84, 85, 86, 87)}
NETWORKS = {
    "rn50_stem",
    "rn50_l1_3x3",
    "rn50_l2_3x3s2",
    "rn50_l3_3x3",
    "rn50_l4_3x3",
    "rn50_l1_1x1",
    "rn50_l3_1x1",
    "unet_64",
    "unet_256",
    "resnext_g32",
    "convnext_dw7",
    "convnext_dw7_l3",
    "replk_dw31",
    "mbv2_dw3s2",
    "deeplab_dil12",
    "superres_b1",
    "small_b1",
}

# Operations (10**9) and bytes (10**9) of each layer as counted when PyTorch was first measured on
# an H200, independently of ConvSpec.
COUNTED = {
    "kb50": (53.97, 0.4516),
    "kb55": (614.9, 3.209),
    "kb56": (582.6, 0.7898),
    "kb62": (377.5, 0.7932),
    "kb63": (616.1, 9.63),
    "kb80": (371.5, 0.7848),
    "kb82": (4.794, 2.139),
    "kb83": (0.8022, 1.072),
    "kb84": (19.1, 8.54),
    "kb85": (5.419, 1.053),
    "kb86": (68.72, 3.221),
    "kb87": (274.9, 12.88),
    "rn50_stem": (15.11, 0.2441),
    "rn50_l1_3x3": (14.8, 0.1029),
    "rn50_l2_3x3s2": (14.8, 0.129),
    "rn50_l3_3x3": (14.8, 0.02805),
    "rn50_l4_3x3": (14.8, 0.02228),
    "rn50_l1_1x1": (6.577, 0.257),
    "rn50_l3_1x1": (6.577, 0.06527),
    "unet_64": (95.82, 0.6679),
    "unet_256": (84.73, 0.1517),
    "resnext_g32": (1.85, 0.2055),
    "convnext_dw7": (1.888, 0.1542),
    "convnext_dw7_l3": (0.4721, 0.03861),
    "replk_dw31": (24.69, 0.1033),
    "mbv2_dw3s2": (0.1301, 0.1445),
    "deeplab_dil12": (39.87, 0.07158),
    "superres_b1": (152.9, 1.062),
    "small_b1": (0.2312, 0.002761),
}


def test_the_core_suite_has_its_29_layers_once_each() -> None:
    names = [layer.name for layer in CORE]
    assert len(names) == len(set(names)) == 29
    assert set(names) == KERNELBENCH | NETWORKS


def test_the_default_is_all_directions_and_both_classes_of_float32() -> None:
    assert set(DIRECTIONS) == {Direction.FORWARD, Direction.GRAD_INPUT, Direction.GRAD_WEIGHT}
    assert set(PRECISIONS) == {Precision.TF32, Precision.FLOAT32}


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("layer", CORE, ids=lambda layer: layer.name)
def test_a_layer_has_its_published_size(layer: Layer, direction: Direction) -> None:
    spec = layer.spec(direction, Precision.TF32, Layout.NCHW)
    assert (spec.operations / 1e9, spec.bytes_moved / 1e9) == pytest.approx(
        COUNTED[layer.name], rel=1e-3
    )


def sizes(layer: Layer) -> tuple[int, int]:
    """Channels and filters of a group."""
    return layer.input_shape[1] // layer.groups, layer.out_channels // layer.groups


def geometry(layer: Layer) -> list[str]:
    """The parts of a name that tell plane, filter, stride, dilation and padding."""

    def pair(first: int, second: int) -> str:
        return str(first) if first == second else f"{first}x{second}"

    parts = [pair(*layer.input_shape[2:]), "k" + pair(*layer.kernel_size)]
    usual = tuple(
        dilation * (kernel - 1) // 2
        for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)
    )
    parts += ["s" + pair(*layer.stride)] if layer.stride != (1, 1) else []
    parts += ["d" + pair(*layer.dilation)] if layer.dilation != (1, 1) else []
    parts += ["p" + pair(*layer.padding)] if layer.padding != usual else []
    return parts


def telling_name(layer: Layer) -> str:
    """The name that the numbers of a layer of the depthwise sweep ask for."""
    batch, channels, *_ = layer.input_shape
    own, filters = sizes(layer)
    parts = ["dw" if own == 1 else f"g{own}f{filters}", f"b{batch}", f"c{channels}"]
    parts += geometry(layer)
    parts += [f"m{filters}"] if own == 1 < filters else []
    return "_".join(parts)


def telling_dense_name(layer: Layer) -> str:
    """The name that the numbers of a layer of the dense sweep ask for."""
    batch, channels, *_ = layer.input_shape
    parts = ["c", f"b{batch}", f"c{channels}k{layer.out_channels}", *geometry(layer)]
    parts += [f"g{layer.groups}"] if layer.groups > 1 else []
    return "_".join(parts)


@pytest.mark.parametrize("layer", DEPTHWISE, ids=lambda layer: layer.name)
def test_a_layer_of_the_sweep_is_what_its_name_says_and_small(layer: Layer) -> None:
    assert layer.name == telling_name(layer)
    assert layer.groups > 1
    assert sizes(layer)[0] < 8
    spec = layer.spec(Direction.FORWARD, Precision.FLOAT32, Layout.NCHW)
    assert spec.bytes_moved < 0.5e9
    # PyTorch's own kernels take up to 5 ps for each product of the sum: 20 ms.
    assert spec.operations / 2 < 4e9


def test_the_sweep_has_48_layers_and_covers_every_axis() -> None:
    assert len({layer.name for layer in DEPTHWISE}) == len(DEPTHWISE) == 48
    depthwise = [layer for layer in DEPTHWISE if sizes(layer)[0] == 1]
    assert {layer.input_shape[0] for layer in depthwise} >= {1, 2, 3, 8, 16, 32, 64, 128, 256}
    planes = {layer.input_shape[2:] for layer in depthwise}
    assert planes >= {(size, size) for size in (7, 14, 15, 28, 31, 57, 113, 127, 257, 512)}
    assert planes >= {(13, 29), (63, 31), (96, 72), (200, 304)}
    kernels = {layer.kernel_size for layer in depthwise}
    assert kernels >= {(size, size) for size in (1, 2, 3, 4, 5, 7, 9, 11, 13, 15, 21, 31)}
    assert kernels >= {(1, 7), (7, 1), (3, 5), (1, 31)}
    assert {layer.stride for layer in depthwise} == {(1, 1), (2, 2), (1, 2)}
    assert {layer.dilation for layer in depthwise} == {(size, size) for size in (1, 2, 3, 4)}
    assert max(layer.input_shape[1] for layer in depthwise) == 2048
    assert {sizes(layer)[1] for layer in depthwise} == {1, 2, 4}
    narrow = {sizes(layer) for layer in DEPTHWISE} - {sizes(layer) for layer in depthwise}
    assert narrow == {(2, 2), (3, 5), (4, 4), (5, 5), (7, 14)}


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("precision", DTYPE)
def test_a_spec_describes_the_tensors_that_are_measured(
    precision: Precision, layout: Layout
) -> None:
    layer = Layer("any", (2, 6, 9, 8), 4, (3, 2), (2, 1), (1, 2), (1, 2), 2)
    spec = layer.spec(Direction.FORWARD, precision, layout)

    def tensor(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=spec.dtype).to(memory_format=layout.memory_format)

    output = torch.nn.functional.conv2d(
        tensor(layer.input_shape),
        tensor(layer.weight_shape),
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    assert spec.output_shape == layer.output_shape == tuple(output.shape)
    assert spec.input_strides == tensor(layer.input_shape).stride()
    assert spec.weight_strides == tensor(layer.weight_shape).stride()
    assert spec.output_strides == tensor(layer.output_shape).stride()
    assert spec.is_channels_last == (layout is Layout.NHWC)


@pytest.mark.parametrize("layer", DENSE, ids=lambda layer: layer.name)
def test_a_dense_layer_is_what_its_name_says_and_quick(layer: Layer) -> None:
    assert layer.name == telling_dense_name(layer)
    assert layer.groups == 1 or layer.input_shape[1] // layer.groups >= 8
    spec = layer.spec(Direction.FORWARD, Precision.FLOAT32, Layout.NCHW)
    assert spec.bytes_moved < 1.5 * 2**30
    assert spec.operations < 300e9


def test_the_dense_suite_has_64_layers_and_covers_every_axis() -> None:
    assert len({layer.name for layer in DENSE}) == len(DENSE) == 64
    assert {layer.input_shape[0] for layer in DENSE} >= {1, 2, 3, 5, 8, 16, 32, 64, 128, 256}
    assert {layer.input_shape[1] for layer in DENSE} >= {1, 3, 5, 24, 33, 96, 116, 2048}
    assert {layer.out_channels for layer in DENSE} >= {1, 2, 7, 24, 29, 58, 96, 116, 255, 2048}
    planes = {layer.input_shape[2:] for layer in DENSE}
    assert planes >= {(size, size) for size in (7, 14, 17, 29, 31, 33, 65, 127, 299, 2048)}
    assert planes >= {(1, 2000), (22, 30), (57, 91), (61, 83), (360, 480), (1023, 2047)}
    kernels = {layer.kernel_size for layer in DENSE}
    assert kernels >= {(size, size) for size in (1, 2, 3, 4, 5, 6, 7, 9, 11)}
    assert kernels >= {(1, 2), (1, 3), (1, 7), (7, 1), (3, 5), (5, 3)}
    strides = {layer.stride for layer in DENSE}
    assert strides == {(1, 1), (2, 2), (3, 3), (4, 4), (2, 1), (3, 2), (1, 3)}
    dilations = {layer.dilation for layer in DENSE}
    assert dilations == {(1, 1), (2, 2), (4, 4), (6, 6), (12, 12), (3, 2), (1, 8)}
    assert {layer.groups for layer in DENSE} == {1, 2, 3, 6, 9, 32, 55}
    forward = [layer.spec(Direction.FORWARD, Precision.TF32, Layout.NCHW) for layer in DENSE]
    assert sum(spec.operations for spec in forward) < 4e12
