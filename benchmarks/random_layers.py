"""Measure what is planned for random layers against PyTorch, with the checks of the suites.

python benchmarks/random_layers.py [--seed 1] [--layers 40] [--precision tf32] [--json record.json]

No model of a time has seen these layers, so that they tell how often the choice, which is measured,
is mistaken: each row says which kernel ran, its time and PyTorch's, and whether it was right.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from pathlib import Path

from convsmith.bench.command import bench_suite
from convsmith.bench.contestants import Peer
from convsmith.bench.selections import Selection
from convsmith.bench.suites import DTYPE, SUITES, Layer, Layout
from convsmith.errors import ConvSmithError
from convsmith.spec import Direction, Precision

SUITE = "random"
BATCHES = (1, 1, 2, 4, 8, 16, 32, 64, 128)
CHANNELS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512, 768)
EXTENTS = (7, 8, 13, 14, 16, 19, 20, 26, 28, 32, 38, 40, 52, 56, 64, 75, 80, 96, 112, 128, 200, 256)
KERNELS = ((1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (7, 7), (1, 7), (3, 1), (2, 2), (4, 4))
OPERATIONS = (3e8, 1e11)  # worth a tensor core, and no more than milliseconds
MOST_ELEMENTS = 1e8  # of x, and of y


def main(arguments: list[str] | None = None) -> int:
    """Measure the layers that the command line asks for; 0 all right, 1 not, 2 not measured."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layers", type=int, default=40)
    precisions = [precision.value for precision in DTYPE]
    parser.add_argument("--precision", choices=precisions, default=Precision.TF32.value)
    parser.add_argument("--json", type=Path, help="the record to write or continue")
    options = parser.parse_args(arguments)
    SUITES[SUITE] = tuple(draw(options.seed, options.layers))
    selection = Selection(SUITE, precisions=(Precision(options.precision),))
    try:
        return bench_suite(selection, (Peer.TORCH,), json=options.json)
    except ConvSmithError as error:
        print(error, file=sys.stderr)
        return 2


def draw(seed: int, count: int) -> list[Layer]:
    """``count`` layers, the same for the same ``seed``."""
    source = random.Random(seed)
    found: dict[str, Layer] = {}
    while len(found) < count:
        layer = _any_layer(source)
        if _is_measurable(layer):
            found[layer.name] = layer
    return list(found.values())


def _any_layer(source: random.Random) -> Layer:
    """A layer of any numbers, though its filter may not fit or its tensors be huge."""
    batch, channels, filters = (source.choice(each) for each in (BATCHES, CHANNELS, CHANNELS))
    height = source.choice(EXTENTS)
    width = height if source.random() < 0.8 else source.choice(EXTENTS)
    kernel = source.choice(KERNELS)
    stride = source.choice((1, 1, 1, 2))
    dilation = 1 if kernel == (1, 1) else source.choice((1, 1, 1, 1, 2))
    half = [dilation * (taps - 1) // 2 for taps in kernel]
    padding = (half[0], half[1]) if source.random() < 0.8 else (0, 0)
    name = f"b{batch}_c{channels}k{filters}_{height}x{width}_k{kernel[0]}x{kernel[1]}"
    return Layer(
        f"{name}_s{stride}_d{dilation}_p{padding[0]}x{padding[1]}",
        (batch, channels, height, width),
        filters,
        kernel,
        (stride, stride),
        padding,
        (dilation, dilation),
    )


def _is_measurable(layer: Layer) -> bool:
    """Whether the filter fits into the padded image, and times are neither tiny nor huge."""
    if min(layer.output_shape) < 1:
        return False
    operations = layer.spec(Direction.FORWARD, Precision.TF32, Layout.NCHW).operations
    elements = max(math.prod(layer.input_shape), math.prod(layer.output_shape))
    least, most = OPERATIONS
    return least < operations < most and elements <= MOST_ELEMENTS


if __name__ == "__main__":
    sys.exit(main())
