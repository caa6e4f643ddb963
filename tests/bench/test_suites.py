"""The core suite is complete, and its layers are the published ones."""

from __future__ import annotations

import pytest
import torch

from convsmith.bench.suites import CORE, DIRECTIONS, DTYPE, PRECISIONS, Layer, Layout
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


def test_a_record_covers_all_directions_and_both_classes_of_float32() -> None:
    assert set(DIRECTIONS) == {Direction.FORWARD, Direction.GRAD_INPUT, Direction.GRAD_WEIGHT}
    assert set(PRECISIONS) == {Precision.TF32, Precision.FLOAT32}


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("layer", CORE, ids=lambda layer: layer.name)
def test_a_layer_has_its_published_size(layer: Layer, direction: Direction) -> None:
    spec = layer.spec(direction, Precision.TF32, Layout.NCHW)
    assert (spec.operations / 1e9, spec.bytes_moved / 1e9) == pytest.approx(
        COUNTED[layer.name], rel=1e-3
    )


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
