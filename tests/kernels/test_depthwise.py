"""The depthwise family against float64: in the simulator, and on a GPU where there is one.

Kernel size, stride, padding, dilation and a thread's tile are compiled in, so each layer compiles
three kernels: tests share layers where they can, and images are varied rather than layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from convolutions import LAYOUTS, PLAIN, Case, check, in_layout, narrow_layers, on_poisoned_memory
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor
from torch.nn import functional

import convsmith
from convsmith import execute, planner
from convsmith.errors import KernelUnavailableError
from convsmith.kernels import depthwise
from convsmith.launch import compile_ahead
from convsmith.spec import Direction

ORDINARY = replace(PLAIN, group_channels=1, group_filters=1, groups=9)
CHANNELS_LAST = replace(ORDINARY, layout="channels_last", upstream_layout="channels_last")
NARROW = replace(ORDINARY, group_channels=4, group_filters=4, groups=3)
LARGE = replace(ORDINARY, groups=2, size=(12, 13), kernel_size=(31, 31), padding=(15, 15))

# Layers, by what is awkward about them.
LAYERS = {
    # Of which a weight gradient sums no dy.
    "no-bias": replace(ORDINARY, has_bias=False),
    "no-bias-channels-last": replace(CHANNELS_LAST, has_bias=False),
    "no-bias-narrow": replace(NARROW, has_bias=False),
    "no-bias-31x31": replace(LARGE, has_bias=False),
    "no-tap-in-a-phase": replace(ORDINARY, stride=(3, 2), dilation=(3, 2), size=(8, 9)),
    "stride-beyond-the-filter": replace(ORDINARY, stride=(7, 5), size=(15, 16)),
    "common-factor": replace(ORDINARY, stride=(2, 4), dilation=(2, 2), padding=(2, 3)),
    # Whole rows of copied vectors, and one zero beyond, which a tile has to have room for.
    "stride-2": replace(ORDINARY, stride=(2, 2), groups=2, size=(8, 56)),
    "mostly-padding": replace(ORDINARY, kernel_size=(2, 2), padding=(6, 7)),
    "7x7": replace(ORDINARY, kernel_size=(7, 7), padding=(3, 3)),
    "7x7-float16": replace(
        ORDINARY, kernel_size=(7, 7), padding=(3, 3), size=(9, 14), dtype=torch.float16
    ),
    "11x11": replace(ORDINARY, kernel_size=(11, 11), size=(12, 11), padding=(2, 5)),
    "13x13-stride-2": replace(
        ORDINARY, groups=2, size=(15, 29), stride=(2, 2), kernel_size=(13, 13), padding=(6, 6)
    ),
    "31x31": LARGE,
    "51x51": replace(LARGE, batch=1, size=(10, 15), kernel_size=(51, 51), padding=(25, 25)),
    "1x31": replace(LARGE, kernel_size=(1, 31), padding=(0, 15)),
    "31x1": replace(LARGE, kernel_size=(31, 1), padding=(15, 0)),
    "multiplier-2": replace(ORDINARY, group_filters=2, groups=3),
    "multiplier-8": replace(ORDINARY, group_filters=8, groups=3),
    # More filters than are in shared memory at once, in blocks of several groups.
    "multiplier-9": replace(ORDINARY, batch=3, group_filters=9, size=(5, 6)),
    "one-group": replace(ORDINARY, group_filters=3, groups=1),
    "2-to-2": replace(NARROW, group_channels=2, group_filters=2),
    "3-to-5": replace(NARROW, group_channels=3, group_filters=5),
    "5-to-2": replace(NARROW, group_channels=5, group_filters=2),
    "6-to-1": replace(NARROW, group_channels=6, group_filters=1, groups=2),
    "7-to-7": replace(NARROW, group_channels=7, group_filters=7, groups=2),
    "narrow-31x1": replace(NARROW, groups=2, size=(12, 13), kernel_size=(31, 1), padding=(15, 0)),
}
DTYPES = {
    dtype: {"ordinary": replace(ORDINARY, dtype=dtype), "narrow": replace(NARROW, dtype=dtype)}
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
}
# Images whose planes are cut into blocks in other ways, for the layers above.
IMAGES = {
    "one-pixel": replace(ORDINARY, size=(1, 1)),
    "one-row": replace(ORDINARY, size=(1, 13)),
    "one-column": replace(ORDINARY, size=(13, 1)),
    "many-planes-a-block": replace(ORDINARY, batch=41, groups=3, size=(7, 7)),
    "channels-last-6": replace(CHANNELS_LAST, groups=6),
    "channels-last-8": replace(CHANNELS_LAST, groups=8),
    "channels-last-33": replace(CHANNELS_LAST, groups=33),
    "channels-last-bands": replace(CHANNELS_LAST, groups=17, size=(90, 50)),
    "channels-last-float16": replace(CHANNELS_LAST, groups=67, dtype=torch.float16),
    "channels-last-to-nchw": replace(CHANNELS_LAST, upstream_layout="nchw"),
    "nchw-to-channels-last": replace(CHANNELS_LAST, layout="nchw"),
    "rows-in-bands": replace(ORDINARY, batch=1, groups=2, size=(150, 90)),
    "600-columns": replace(ORDINARY, batch=1, groups=2, size=(9, 600)),
    "601-columns": replace(ORDINARY, batch=1, groups=2, size=(9, 601)),
    "1100-columns": replace(ORDINARY, batch=2, groups=1, size=(3, 1100)),
    "1101-columns": replace(ORDINARY, batch=2, groups=1, size=(3, 1101)),
    "1099-columns-float16": replace(
        ORDINARY, batch=2, groups=1, size=(3, 1099), dtype=torch.float16
    ),
    "many-planes-a-block-float16": replace(
        ORDINARY, batch=41, groups=3, size=(7, 7), dtype=torch.float16
    ),
    "narrow-many-planes-a-block": replace(NARROW, batch=41, size=(7, 7)),
    "narrow-1101-columns": replace(NARROW, batch=1, groups=2, size=(2, 1101)),
    # Rows that begin at multiples of 2, 4 and 8 elements, for tiles of eight columns.
    **{
        f"7x7-float16-{width}-columns": replace(LAYERS["7x7-float16"], groups=2, size=(9, width))
        for width in (12, 13, 16, 18)
    },
    # Threads of two planes that alternate, and of interleaved planes, which do not.
    "stride-2-many-planes-a-block": replace(LAYERS["stride-2"], batch=9, groups=12, size=(14, 14)),
    "stride-2-channels-last": replace(
        LAYERS["stride-2"],
        groups=17,
        size=(14, 14),
        layout="channels_last",
        upstream_layout="channels_last",
    ),
    # Rows of dy that are no whole runs of a weight gradient whose threads own taps.
    **{
        f"11x11-{width}-columns": replace(LAYERS["11x11"], groups=2, size=(9, width))
        for width in (1, 7, 14, 28, 45)
    },
    **{
        f"11x11-{dtype}-{width}-columns": replace(
            LAYERS["11x11"], groups=2, size=(9, width), dtype=dtype
        )
        for dtype in (torch.float16, torch.bfloat16)
        for width in (7, 35)
    },
    # Threads whose outputs are as high as a plane, or not, in planes that lie apart.
    "7x7-planes-of-14-rows": replace(LAYERS["7x7"], batch=17, groups=21, size=(14, 14)),
    "7x7-14-columns": replace(LAYERS["7x7"], groups=5, size=(20, 14)),
    "7x7-28-columns": replace(LAYERS["7x7"], batch=9, groups=5, size=(28, 28)),
    "31x31-wide": replace(LARGE, batch=1, groups=1, size=(6, 300)),
    "31x31-tall": replace(LARGE, batch=1, groups=1, size=(90, 9)),
    "31x31-many-images": replace(LARGE, batch=9, size=(7, 7)),
}


@pytest.fixture(
    scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["sim", "gpu"]
)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device whose convolutions all run on the depthwise family, from poisoned memory."""
    if request.param == "cuda":
        compile_what_the_tests_run(torch.device("cuda", torch.cuda.current_device()))
    with on_poisoned_memory("depthwise"):
        yield request.param


def compile_what_the_tests_run(device: torch.device) -> None:
    """On all processors at once: one by one, nvcc takes minutes."""
    cases = [*LAYERS.values(), *IMAGES.values()]
    cases += [case for layers in DTYPES.values() for case in layers.values()]
    specs = [spec for case in cases for spec in case.specs().values()]
    compile_ahead([planner.plan_for(spec, device, "depthwise") for spec in specs], device)


# Not on a GPU: nvcc takes long for each of these layers. The layers above run on both.
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(images=narrow_layers(images=2))
def test_any_layer_of_few_channels_a_group(images: list[Case]) -> None:
    with convsmith.use_kernel("depthwise"), convsmith.simulator():
        for case in images:
            assume(not any(map(depthwise.obstacle, case.specs().values())))
            check(case, "cpu")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", ["ordinary", "narrow"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_layouts(device: str, dtype: torch.dtype, channels: str, layout: str) -> None:
    """Rows of odd width, and rows that can be copied 16 bytes at a time."""
    case = replace(DTYPES[dtype][channels], layout=layout, upstream_layout=layout)
    check(case, device)
    check(replace(case, size=(5, 16)), device)


@pytest.mark.parametrize("layer", LAYERS)
def test_awkward_layers(device: str, layer: str) -> None:
    check(LAYERS[layer], device)


@pytest.mark.parametrize("image", IMAGES)
def test_awkward_images(device: str, image: str) -> None:
    check(IMAGES[image], device)


def test_a_block_takes_planes_of_several_images() -> None:
    """Else the tests of many small planes would test little."""
    for image in ("many-planes-a-block", "narrow-many-planes-a-block"):
        case = IMAGES[image]
        for direction, spec in case.specs().items():
            alone = replace(case, batch=1).specs()[direction]
            blocks = depthwise.configure(spec, 4).blocks
            assert blocks < case.batch * depthwise.configure(alone, 4).blocks


def test_weight_gradient_in_parts_is_exact_and_repeatable(device: str) -> None:
    """Images and bands of rows enough that they are cut up and their partial sums added."""
    many = IMAGES["many-planes-a-block"].specs()[Direction.GRAD_WEIGHT]
    assert depthwise.configure(many, 4).splits > 32  # more than kAdders threads load at once
    for case in (
        IMAGES["many-planes-a-block"],
        replace(NARROW, batch=13, size=(7, 7)),
        IMAGES["31x31-many-images"],
    ):
        assert depthwise.configure(case.specs()[Direction.GRAD_WEIGHT], 4).workspace_bytes > 0
        check(case, device)
        x, w, _ = case.tensors(device)
        dy = case.upstream(torch.conv2d(x, w, None, *case.geometry))
        first, second = (
            execute.weight_gradient(dy, x, w, *case.geometry, case.has_bias) for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def in_order(x: Tensor, w: Tensor, b: Tensor, case: Case) -> Tensor:
    """The forward convolution of one channel a group, tap after tap in float32."""
    (stride_h, stride_w), (padding_h, padding_w), (step_h, step_w), _ = case.geometry
    x = functional.pad(x.float(), (padding_w, padding_w, padding_h, padding_h))
    x = x.repeat_interleave(case.group_filters, dim=1)
    windows = x.unfold(2, step_h * (w.shape[2] - 1) + 1, stride_h)
    windows = windows.unfold(3, step_w * (w.shape[3] - 1) + 1, stride_w)
    y = b.float()[:, None, None].expand(windows.shape[:4])
    for r in range(w.shape[2]):
        for s in range(w.shape[3]):
            y = y + w[:, 0, r, s].float()[:, None, None] * windows[..., r * step_h, s * step_w]
    return y.to(w.dtype)


@pytest.mark.parametrize(
    "case",
    [
        *(layers["ordinary"] for layers in DTYPES.values()),
        LAYERS["common-factor"],
        LAYERS["7x7"],
        LAYERS["multiplier-2"],
        LARGE,
    ],
    ids=lambda case: f"{case.kernel_size[0]}x{case.kernel_size[1]}-{case.dtype}",
)
def test_one_channel_a_group_is_summed_in_pytorchs_order(device: str, case: Case) -> None:
    """The same bits: beside PyTorch's own kernel on a GPU; which order it is, in the simulator."""
    x, w, b = case.tensors(device)
    y = execute.forward(x, w, b, *case.geometry)
    if device == "cpu":
        assert torch.equal(y, in_order(x, w, b, case))
        return
    with torch.backends.cudnn.flags(enabled=False):
        assert torch.equal(y, torch.conv2d(x, w, b, *case.geometry))
        if case.group_filters == 1:
            dy = case.upstream(y)
            dx = execute.input_gradient(dy, w, x, *case.geometry)
            assert torch.equal(dx, gradients(dy, x, w, case)[0])


def gradients(dy: Tensor, x: Tensor, w: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """PyTorch's gradients of x and of w."""
    stride, padding, dilation, groups = case.geometry
    dx, dw, _ = torch.ops.aten.convolution_backward(
        *(dy, x, w, None, stride, padding, dilation, False, (0, 0), groups, (True, True, False))
    )
    return dx, dw


def pairwise(dy: Tensor, x: Tensor, w: Tensor, case: Case) -> Tensor:
    """The gradient of w as PyTorch adds the few terms of a small plane on a GPU, in float32."""
    x = functional.pad(x, (case.padding[1], case.padding[1], case.padding[0], case.padding[0]))
    result = torch.empty_like(w)
    for r in range(w.shape[2]):
        for s in range(w.shape[3]):
            met = x[..., r : r + dy.shape[2], s : s + dy.shape[3]]
            terms = (dy * met).transpose(0, 1).flatten(1)
            while terms.shape[1] > 1:
                terms = functional.pad(terms, (0, terms.shape[1] % 2))
                terms = terms[:, ::2] + terms[:, 1::2]
            result[:, 0, r, s] = terms[:, 0]
    return result


@pytest.mark.parametrize("seed", range(4))
def test_a_weight_gradient_of_few_terms_errs_less_than_pytorchs(device: str, seed: int) -> None:
    """The largest error too: one image of 7 x 7."""
    case = replace(ORDINARY, batch=1, groups=960, size=(7, 7), seed=seed)
    x, w, _ = case.tensors(device)
    dy = case.upstream(x)
    ours, _ = execute.weight_gradient(dy, x, w, *case.geometry, False)
    theirs = pairwise(dy, x, w, case) if device == "cpu" else gradients(dy, x, w, case)[1]
    exact = gradients(dy.double(), x.double(), w.double(), case)[1]
    assert (ours - exact).abs().max() <= (theirs - exact).abs().max()
    assert (ours - exact).norm() <= 0.9 * (theirs - exact).norm()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize(
    "case",
    [
        ORDINARY,
        replace(ORDINARY, batch=1, groups=2, size=(4, 510)),
        replace(LAYERS["common-factor"], size=(9, 22)),
        LAYERS["3-to-5"],
        replace(LARGE, size=(4, 45)),
        replace(LAYERS["11x11"], size=(9, 7)),
        replace(LAYERS["13x13-stride-2"], size=(8, 29)),
    ],
    ids=["13-columns", "510-columns", "strided", "3-to-5", "31x31", "11x11", "13x13-strided"],
)
def test_inf_and_nan_reach_just_what_they_meet(device: str, case: Case, value: float) -> None:
    """In x they reach the outputs and the taps that meet them; in dy elements of dx."""
    x, w, _ = case.tensors(device)
    y = torch.conv2d(x, w, None, *case.geometry)
    dy = case.upstream(y)
    for row, column in ((2, 1), (0, 5), (-1, -1)):
        place = (-1, 1, row, column)
        bad_x, bad_dy, one = x.clone(), dy.clone(), torch.zeros_like(x).double()
        bad_x[place], bad_dy[place], one[place] = value, value, 1.0
        one_dy = torch.zeros_like(y).double()
        one_dy[place] = 1.0
        ones = torch.ones_like(w).double()

        touched = torch.conv2d(one, ones, None, *case.geometry) != 0
        ours = execute.forward(bad_x, w, None, *case.geometry)
        exact = torch.conv2d(bad_x.double(), w.double(), None, *case.geometry)
        assert_touched(ours, touched, exact)

        touched = gradients(one_dy, one, ones, case)[0] != 0
        ours = execute.input_gradient(bad_dy, w, x, *case.geometry)
        exact = gradients(bad_dy.double(), x.double(), w.double(), case)[0]
        assert_touched(ours, touched, exact)

        touched = gradients(torch.ones_like(one_dy), one, ones, case)[1] != 0
        ours, _ = execute.weight_gradient(dy, bad_x, w, *case.geometry, False)
        exact = gradients(dy.double(), bad_x.double(), w.double(), case)[1]
        assert_touched(ours, touched, exact)


def assert_touched(ours: Tensor, touched: Tensor, exact: Tensor) -> None:
    assert touched.any()
    assert torch.equal(~torch.isfinite(ours), touched)
    torch.testing.assert_close(ours[touched].double(), exact[touched], equal_nan=True)


@pytest.mark.parametrize("width", [13, 16])
@pytest.mark.parametrize("channels", ["ordinary", "narrow"])
def test_results_do_not_depend_on_what_lies_around(device: str, channels: str, width: int) -> None:
    """Bit for bit: NaN around a tensor's rows, or other images."""
    case = replace(DTYPES[torch.float32][channels], size=(9, width), batch=3)
    x, w, b = case.tensors(device)
    y = execute.forward(x, w, b, *case.geometry)
    dy = case.upstream(y)
    dx = execute.input_gradient(dy, w, x, *case.geometry)
    dw, db = execute.weight_gradient(dy, x, w, *case.geometry, True)

    cropped, cropped_dy = in_layout(x, "cropped"), in_layout(dy, "cropped")
    assert torch.equal(execute.forward(cropped, w, b, *case.geometry), y)
    assert torch.equal(execute.input_gradient(cropped_dy, w, x, *case.geometry), dx)
    again = execute.weight_gradient(cropped_dy, cropped, w, *case.geometry, True)
    assert torch.equal(again[0], dw)
    assert torch.equal(again[1], db)

    for image in range(case.batch):
        only = slice(image, image + 1)
        assert torch.equal(execute.forward(x[only], w, b, *case.geometry), y[only])
        alone = execute.input_gradient(dy[only], w, x[only], *case.geometry)
        assert torch.equal(alone, dx[only])


# A case, the directions that the family refuses of it, and what it says.
REFUSED = {
    "float64": (
        replace(ORDINARY, dtype=torch.float64),
        tuple(Direction),
        "it sums in float32, which is too little for float64",
    ),
    "wide-groups": (
        replace(NARROW, group_channels=8),
        tuple(Direction),
        "its groups have 8 channels, more than 7",
    ),
    "one-group": (replace(NARROW, groups=1), tuple(Direction), "it has a single group"),
    "wide-filter": (
        replace(ORDINARY, kernel_size=(1, 90), padding=(0, 45)),
        (Direction.FORWARD, Direction.GRAD_INPUT),
        r"its filter rows reach over \d+ columns, more than 80",
    ),
    "wide-stride": (
        replace(ORDINARY, stride=(9, 9), size=(19, 19)),
        (Direction.GRAD_INPUT,),
        r"a stride of \(9, 9\) spreads its gradient too thin",
    ),
    "tall-filter": (
        replace(NARROW, batch=1, size=(700, 90), kernel_size=(31, 3), dilation=(20, 1)),
        tuple(Direction),
        "its filter reaches too far for a tile in shared memory",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_do_it_says(name: str) -> None:
    case, refused, text = REFUSED[name]
    x, w, b = case.tensors("cpu")
    dy = case.upstream(torch.conv2d(x, w, None, *case.geometry))
    run = {
        Direction.FORWARD: lambda: execute.forward(x, w, b, *case.geometry),
        Direction.GRAD_INPUT: lambda: execute.input_gradient(dy, w, x, *case.geometry),
        Direction.GRAD_WEIGHT: lambda: execute.weight_gradient(dy, x, w, *case.geometry, True),
    }
    for direction, spec in case.specs().items():
        obstacle = depthwise.obstacle(spec)
        if direction not in refused:
            assert obstacle is None
            continue
        assert obstacle is not None
        assert re.fullmatch(text, obstacle)
        with (
            convsmith.use_kernel("depthwise"),
            convsmith.simulator(),
            pytest.raises(KernelUnavailableError, match=text),
        ):
            run[direction]()


@pytest.mark.parametrize("layer", [ORDINARY, LARGE, NARROW], ids=["3x3", "31x31", "narrow"])
def test_a_hundred_image_sizes_need_a_handful_of_compilations(layer: Case) -> None:
    """A handful: tiles of whole rows or not, of which shared memory holds two or one.

    A weight gradient of few terms has smaller tiles besides, for the sake of its error.
    """
    for direction in Direction:
        specs = [
            replace(layer, size=(height, width), batch=height).specs()[direction]
            for height in (1, 5, 7, 14, 28, 56, 57, 112, 224, 300)
            for width in (1, 6, 7, 14, 28, 31, 56, 112, 224, 1100)
        ]
        sources = {depthwise.source(spec, depthwise.configure(spec, 132)) for spec in specs}
        assert len({source.name for source in sources}) == 1
        assert len(sources) <= 8


@pytest.mark.parametrize("multiprocessors", [4, 132])
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(images=narrow_layers(images=2, largest=1000))
def test_blocks_stay_within_their_limits(multiprocessors: int, images: list[Case]) -> None:
    for case in images:
        for spec in case.specs().values():
            if depthwise.obstacle(spec) is None:
                assert_within_limits(depthwise.configure(spec, multiprocessors))


def test_few_images_leave_no_multiprocessor_idle() -> None:
    """Counting blocks that a multiprocessor could hold, and not those there are, made it 102."""
    planes = replace(ORDINARY, batch=3, groups=17, size=(127, 127))
    case = replace(planes, kernel_size=(2, 2), padding=(0, 0))
    assert depthwise.configure(case.specs()[Direction.GRAD_WEIGHT], 132).blocks > 132


@pytest.mark.parametrize("groups", [64, 1024, 8191, 8192, 100_000])
def test_partial_sums_stay_within_their_limit(groups: int) -> None:
    """Many large filters: their partial sums would take gigabytes."""
    case = replace(LARGE, batch=64, groups=groups, size=(64, 64))
    assert_within_limits(depthwise.configure(case.specs()[Direction.GRAD_WEIGHT], 132))


def assert_within_limits(configuration: depthwise.Configuration) -> None:
    assert configuration.threads % 32 == 0
    assert 32 <= configuration.threads <= 256
    assert configuration.shared_bytes <= depthwise.SHARED_BYTES
    assert configuration.workspace_bytes <= 64 * 2**20
