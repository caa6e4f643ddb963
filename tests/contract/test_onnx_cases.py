"""The stored and the generated Conv cases of the ONNX package: inputs and expected outputs."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from running import backends
from torch import Tensor

import convsmith

STORED = Path(onnx.__file__).parent / "backend" / "test" / "data" / "pytorch-converted"
GENERATED = (
    "test_basic_conv_with_padding",
    "test_basic_conv_without_padding",
    "test_conv_with_autopad_same",
    "test_conv_with_strides_and_asymmetric_padding",
    "test_conv_with_strides_no_padding",
    "test_conv_with_strides_padding",
)


@cache
def generated() -> dict[str, Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Other operators' cases overflow on purpose.
        return {case.name: case for case in collect_testcases("Conv")}


def test_no_case_is_missing():
    assert set(generated()) == set(GENERATED)
    assert len(list(STORED.glob("test_Conv2d*"))) == 11


def convolve(model: Any, inputs: list[Tensor], device: str) -> Tensor:
    """Runs a model that is one Conv node."""
    (node,) = model.graph.node
    assert node.op_type == "Conv"
    attributes = {
        attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    tensors = {
        initializer.name: torch.from_numpy(numpy_helper.to_array(initializer).copy())
        for initializer in model.graph.initializer
    }
    fed = [given.name for given in model.graph.input if given.name not in tensors]
    tensors.update(zip(fed, inputs, strict=True))
    x, weight, *bias = (tensors[name].to(device) for name in node.input)
    stride = attributes.get("strides", [1, 1])
    dilation = attributes.get("dilations", [1, 1])
    if attributes.get("auto_pad", b"NOTSET") == b"SAME_LOWER":
        padding = []
        for axis in (0, 1):
            size, extent = x.shape[2 + axis], dilation[axis] * (weight.shape[2 + axis] - 1) + 1
            total = (-(-size // stride[axis]) - 1) * stride[axis] + extent - size
            assert total % 2 == 0
            padding.append(total // 2)
    else:
        pads = attributes["pads"]
        assert pads[:2] == pads[2:]
        padding = pads[:2]
    groups = attributes.get("group", 1)
    return (
        convsmith.conv2d(x, weight, *bias, stride, padding, dilation, groups)
        if bias
        else (convsmith.conv2d(x, weight, None, stride, padding, dilation, groups))
    )


@backends("operators", "simulator", "cuda")
@pytest.mark.parametrize("name", sorted(path.name for path in STORED.glob("test_Conv2d*")))
def test_stored_case(backend, name):
    folder = STORED / name
    model = onnx.load(folder / "model.onnx")
    given, expected = (
        torch.from_numpy(
            numpy_helper.to_array(onnx.load_tensor(folder / "test_data_set_0" / file)).copy()
        )
        for file in ("input_0.pb", "output_0.pb")
    )
    torch.testing.assert_close(
        convolve(model, [given], backend.device).cpu(), expected, rtol=1e-5, atol=1e-5
    )
    assert backend.handed_over == 0


@backends("operators", "simulator", "cuda")
@pytest.mark.parametrize("name", GENERATED)
def test_generated_case(backend, name):
    case = generated()[name]
    ((inputs, outputs),) = case.data_sets
    given = [torch.from_numpy(array.copy()) for array in inputs]
    torch.testing.assert_close(
        convolve(case.model, given, backend.device).cpu(), torch.from_numpy(outputs[0])
    )
    assert backend.handed_over == 0
