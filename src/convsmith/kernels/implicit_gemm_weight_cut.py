"""How the implicit_gemm family cuts a weight gradient into blocks, lines and units."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convsmith.kernels.implicit_gemm_accuracy import pixels_of_sums
from convsmith.kernels.implicit_gemm_cut import PARTS
from convsmith.kernels.implicit_gemm_forward import LEAST_GROUP_CHANNELS
from convsmith.kernels.implicit_gemm_rings import VECTOR
from convsmith.spec import ConvSpec, Pair, Precision, Shape

UNIT_FILTERS = 64
# By the number of products: of three, some wait to be added.
MOST_UNIT_CHANNELS = {1: 64, 3: 32}
BLOCK_CHANNELS = 9 * 64  # of all units of a block
CONSUMERS = 3
UNFOLDED_CHANNELS = 16  # that few channels should become
LINE_PIXELS = 256  # the most
MOST_SEGMENTS = 32
MOST_LINES = 3  # in shared memory
MOST_ROWS = 64
MOST_LOADS = 6
MOST_COLUMNS = 2**15  # of a row of x, that a line reaches over
PIECE_BYTES = 16  # that are copied at once: kPieceBytes of implicit_gemm_weight_copy.cuh
LOADING_WARPS = 4  # of a warpgroup
LOADED_BYTES = 24 * 1024  # of a warp, on their way, at most
LEAST_LOADED_BYTES = 16 * 1024
# Of shared memory. Of three products some registers are kept in memory, the more the more sums
# there are: the first-level cache holds them, in what shared memory leaves of it.
BLOCK_BYTES = 227 * 1024
PARTS_BLOCK_BYTES = 208 * 1024
SUMS_BLOCK_BYTES = 188 * 1024
WEIGHT_HEAD_BYTES = 1792  # no less than kHeadBytes of implicit_gemm_weight_problem.cuh
WORKSPACE_BYTES = 64 * 1024 * 1024
TERMS = 16
# Channels of all units of a warpgroup: so few that they leave registers to others, by the
# number of products; and that of three products few registers are kept in memory.
FEW_SUMS = {1: 96, 3: 64}
FEW_SUMS_OF_PARTS = 96
LINES_OF_A_ROUND = 4  # that beginning and ending take as long as


@dataclass(frozen=True)
class WeightGeometry:
    """A weight gradient's numbers. Pairs are (rows, columns).

    Few channels are unfolded: each has some neighbouring taps of a filter row as channels of
    its own, its lanes, so that filters have fewer columns.

    Args:
        batch, groups: images; channels and filters are of a group.
        x_size, y_size, kernel, stride, dilation: of the forward.
        itemsize: bytes of an element.
        products: of 16-bit operands that make one.
        sum_pixels: that the tensor cores add up; 0 where these are as many as may be.
        has_bias: dy itself is added up, too.
        row_taps: of a filter row; 0 where channels are not unfolded.
        unfolded: taps that become one; 1 where they are not.
        lanes: channels that each becomes; 0 where it is not unfolded.
        lie_alike: whether rows of all channels and images do, to 16 bytes, of dy and of x.
    """

    batch: int
    groups: int
    channels: int
    filters: int
    x_size: Pair
    y_size: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    itemsize: int
    products: int
    sum_pixels: int
    has_bias: bool
    row_taps: int
    unfolded: int
    lanes: int
    lie_alike: tuple[bool, bool]

    @property
    def parts(self) -> int:
        """Of an operand, of 16 bits each."""
        return PARTS[self.products]

    @property
    def unit_columns(self) -> int:
        """Channels of a unit."""
        most = MOST_UNIT_CHANNELS[self.products]
        return min(most, max(16, 1 << (self.channels - 1).bit_length()))

    @property
    def phases(self) -> int:
        """Of the horizontal stride, that taps meet."""
        if self.lanes:
            return 1
        step, dilation = self.stride[1], self.dilation[1]
        return min(self.kernel[1], step // math.gcd(step, dilation))

    @property
    def reach(self) -> int:
        """Pixels of a phase that the last tap lies from the first one."""
        step, dilation, met = self.stride[1], self.dilation[1] * self.unfolded, self.phases
        return max(
            (s * dilation - (s % met) * dilation % step) // step for s in range(self.kernel[1])
        )


@dataclass(frozen=True)
class Line:
    """What is added at once: a row of outputs, or a run of its columns, of some images.

    Args:
        runs, run_columns: of a row of outputs.
        segments, pitch: images side by side, and pixels from one to the next.
        y_pixels, x_pixels: of a row of dy, and of a phase of a row of x.
    """

    runs: int
    run_columns: int
    segments: int
    pitch: int
    y_pixels: int
    x_pixels: int


@dataclass(frozen=True)
class Strip:
    """Lines below one another, of the same images and columns, that meet the same rows of x.

    Args:
        line_step: rows of outputs from a line to the next one.
        row_step: rows of x from one that the lines meet to the next.
        span, advance: rows of x that a line meets, and that are new in the next one.
    """

    line_step: int
    row_step: int
    span: int
    advance: int


@dataclass(frozen=True)
class LineRings:
    """How shared memory is shared out.

    Args:
        lines, rows: of dy, a row for each line, and of x.
        loads: slices of rows that a loading warp has on their way.
        shared_bytes: of a block.
    """

    lines: int
    rows: int
    loads: int
    shared_bytes: int


@dataclass(frozen=True)
class WeightConfiguration:
    """How one weight gradient is cut into blocks.

    Args:
        geometry: what is cut.
        unit_filters, unit_channels, unit_taps: units of a block, which are its sums, of 64
            filters and one tap each.
        slots: units of a warpgroup that multiplies.
        loaders: warpgroups that load.
        line: what is added at once.
        strip: how a block goes from line to line.
        rings: how shared memory is shared out.
        slices: of a row of dy, and of x, that a block loads, at most.
        x_columns: of x that a line of one image reaches over.
        load_bytes: of a channel's row of dy, and of x, as it is loaded.
        jobs, splits: blocks that share all lines, and parts that the lines are split into.
        split_lines: lines of the longest split.
        workspace_bytes: partial sums of all splits.
    """

    geometry: WeightGeometry
    unit_filters: int
    unit_channels: int
    unit_taps: int
    slots: int
    loaders: int
    line: Line
    strip: Strip
    rings: LineRings
    slices: tuple[int, int]
    x_columns: int
    load_bytes: tuple[int, int]
    jobs: int
    splits: int
    split_lines: int
    workspace_bytes: int

    @property
    def products(self) -> int:
        """Of 16-bit operands that make one."""
        return self.geometry.products

    @property
    def shares_filters(self) -> bool:
        """Whether a warpgroup's units have the same ones."""
        return self.unit_filters == 1 or self.slots == 1

    @property
    def is_plain(self) -> bool:
        """Whether neighbours in a line are neighbours in memory."""
        geometry = self.geometry
        return self.line.segments == 1 and (geometry.stride[1] == 1 or geometry.lanes > 0)

    @property
    def strip_lines(self) -> float:
        """Lines of a strip, on average."""
        return self.geometry.y_size[0] / self.strip.line_step


def geometry_of(spec: ConvSpec) -> WeightGeometry:
    """The numbers of ``spec``.

    Where a pixel of x meets that of dy and no other, planes whose rows follow one another are a
    single row.
    """
    batch, _, height, width = spec.input_shape
    out_channels, channels, *kernel = spec.weight_shape
    x_size, y_size = (height, width), spec.output_size
    meets_one = (*kernel, *spec.stride, *spec.padding) == (1, 1, 1, 1, 0, 0)
    if meets_one and spec.input_strides[2] == width == spec.output_strides[2]:
        x_size = y_size = (1, height * width)
    row_taps, unfolded, lanes = 0, 1, 0
    if channels < LEAST_GROUP_CHANNELS:
        row_taps = kernel[1]
        unfolded = unfolded_taps(channels, row_taps, spec.stride[1], spec.dilation[1])
        lanes = lanes_of(unfolded)
        channels *= lanes
        kernel[1] = -(-row_taps // unfolded)
    return WeightGeometry(
        *(batch, spec.groups, channels, out_channels // spec.groups),
        *(x_size, y_size, (kernel[0], kernel[1])),
        *(spec.stride, spec.padding, spec.dilation),
        spec.dtype.itemsize,
        *(3 if spec.precision is Precision.FLOAT32 else 1, pixels_of_sums(spec), spec.has_bias),
        *(row_taps, unfolded, lanes),
        (lie_alike(spec.output_strides, spec), lie_alike(spec.input_strides, spec)),
    )


def lie_alike(strides: Shape, spec: ConvSpec) -> bool:
    """Whether a tensor's rows of all channels and images begin alike, to 16 bytes."""
    return all(stride * spec.dtype.itemsize % PIECE_BYTES == 0 for stride in strides[:2])


def lanes_of(taps: int) -> int:
    """Channels that an unfolded channel of so many taps becomes."""
    vectors = -(-taps // VECTOR)
    return vectors * VECTOR if vectors > 1 else next(n for n in (1, 2, 4, 8) if n >= taps)


def unfolded_taps(channels: int, row_taps: int, stride: int, dilation: int) -> int:
    """Taps of a filter row that few channels are unfolded to.

    All, or so many that those left out lie whole pixels of a line apart: the most of which all
    channels fit into the smallest unit, or else the fewest.
    """
    step = stride // math.gcd(stride, dilation)
    choices: list[int] = [*range(step, row_taps, step), row_taps]
    fitting = [taps for taps in choices if channels * lanes_of(taps) <= UNFOLDED_CHANNELS]
    return max(fitting, default=choices[0])


def lines_to_try(geometry: WeightGeometry) -> list[Line]:
    """Lines of one run of a row, and of several small images."""
    columns, reach = geometry.y_size[1], geometry.reach
    most = LINE_PIXELS
    found = []
    for pixels in range(TERMS, most + 1, TERMS):
        runs = -(-columns // pixels)
        even = -(-columns // runs)
        wide = -(-even // TERMS) * TERMS
        found.append(Line(runs, wide, 1, wide + reach, wide, wide + reach))
        if runs == 1:
            break
    # The zeros to the right of an image are those to the left of the next one.
    shared = geometry.padding[1] if geometry.stride[1] == 1 and not geometry.lanes else 0
    pitch = columns + max(reach - shared, 0)
    most_segments = min(geometry.batch, MOST_SEGMENTS, most // pitch)
    for segments in range(2, most_segments + 1):
        wide = -(-segments * pitch // TERMS) * TERMS
        found.append(Line(1, columns, segments, pitch, wide, wide + reach))
    return list(dict.fromkeys(found))


def units_to_try(geometry: WeightGeometry) -> list[tuple[int, int, int]]:
    """(filters, channels, taps) of a block, in units.

    Where a warpgroup has filters of several, in registers, few units leave it room.
    """
    filters = -(-geometry.filters // UNIT_FILTERS)
    channels = -(-geometry.channels // geometry.unit_columns)
    taps = math.prod(geometry.kernel)
    units = BLOCK_CHANNELS // geometry.unit_columns
    of_several = units
    if geometry.products == 1:
        of_several = CONSUMERS * max(3, FEW_SUMS[1] // geometry.unit_columns)
    return [
        (f, c, t)
        for t in range(1, min(taps, units) + 1)
        for f in range(1, min(units // t, filters) + 1)
        for c in range(1, min(units // t // f, channels) + 1)
        if f == 1 or f * c * t <= of_several
    ]


def filter_rows(geometry: WeightGeometry, taps: int) -> int:
    """Filter rows that the taps of a block reach over, at most."""
    rows, columns = geometry.kernel
    ends = ((t, min(t + taps, rows * columns) - 1) for t in range(0, rows * columns, taps))
    return max(last // columns - first // columns + 1 for first, last in ends)


def strip_of(geometry: WeightGeometry, taps: int) -> Strip:
    """The strips of a block of so many taps."""
    step, dilation = geometry.stride[0], geometry.dilation[0] if geometry.kernel[0] > 1 else 1
    line_step, advance = (one // math.gcd(step, dilation) for one in (dilation, step))
    span = filter_rows(geometry, taps)
    return Strip(min(line_step, geometry.y_size[0]), dilation, span, min(advance, span))


def columns_of(geometry: WeightGeometry, line: Line) -> int:
    """Columns of x that a line of one image reaches over."""
    if geometry.lanes:
        last_tap = (geometry.unfolded - 1) * geometry.dilation[1]
        return (line.pitch - 1) * geometry.stride[1] + last_tap + 1
    return line.pitch * geometry.stride[1]


def load_bytes_of(geometry: WeightGeometry, line: Line) -> tuple[int, int]:
    """Of a channel's row of dy, and of x, as it is loaded."""
    y_columns = min(line.run_columns, geometry.y_size[1])
    x_columns = min(columns_of(geometry, line), geometry.x_size[1])
    return (
        bytes_of_pieces(y_columns * geometry.itemsize),
        bytes_of_pieces(x_columns * geometry.itemsize),
    )


def bytes_of_pieces(row_bytes: int) -> int:
    """Of the pieces that a row lies in, wherever it begins, at most."""
    return (row_bytes + 2 * (PIECE_BYTES - 1)) // PIECE_BYTES * PIECE_BYTES


def share_out_lines(
    geometry: WeightGeometry, units: tuple[int, int, int], line: Line, strip: Strip, warps: int
) -> LineRings | None:
    """The rings of the most lines for which so many loading warps have room, or None."""
    most_bytes = block_bytes(geometry, slots_of(units))
    filters, channels, _ = units
    x_pixels = geometry.phases * line.x_pixels
    y_bytes = 2 * geometry.parts * filters * UNIT_FILTERS * line.y_pixels
    x_bytes = 2 * geometry.parts * channels * geometry.unit_columns * x_pixels
    fixed = WEIGHT_HEAD_BYTES + (x_pixels + line.y_pixels + 3) // 4 * 16
    fixed += filters * UNIT_FILTERS * 32 * 4 if geometry.has_bias else 0
    y_load, x_load = load_bytes_of(geometry, line)
    x_channels = max(VECTOR // geometry.lanes, 1) if geometry.lanes else VECTOR
    slice_bytes = line.segments * max(VECTOR * y_load, x_channels * x_load)
    for lines in range(MOST_LINES, 0, -1):
        rows = strip.span + (lines - 1) * strip.advance
        shared = fixed + lines * y_bytes + rows * x_bytes
        of_warp = (most_bytes - shared) // warps
        loads = min(min(of_warp, LOADED_BYTES) // slice_bytes, MOST_LOADS)
        loaded = loads * warps * slice_bytes
        if rows > MOST_ROWS or loads < 1:
            continue
        if lines == 1 or (loads > 1 and loaded >= LEAST_LOADED_BYTES):
            return LineRings(lines, rows, loads, shared + loaded)
    return None


def attempt_lines(
    geometry: WeightGeometry, units: tuple[int, int, int], line: Line, multiprocessors: int
) -> WeightConfiguration | None:
    """The blocks of some units and lines; None where they do not fit into shared memory."""
    filters, channels, taps = units
    slots = slots_of(units)
    loaders = loading_warpgroups(geometry, slots)
    strip = strip_of(geometry, taps)
    rings = share_out_lines(geometry, units, line, strip, LOADING_WARPS * loaders)
    x_columns = columns_of(geometry, line)
    if rings is None or x_columns >= MOST_COLUMNS:
        return None
    block_filters, block_channels = filters * UNIT_FILTERS, channels * geometry.unit_columns
    jobs = geometry.groups * math.prod(
        -(-size // of_block)
        for size, of_block in (
            (geometry.filters, block_filters),
            (geometry.channels, block_channels),
            (math.prod(geometry.kernel), taps),
        )
    )
    lines = -(-geometry.batch // line.segments) * line.runs * geometry.y_size[0]
    split_bytes = 4 * jobs * taps * block_filters * block_channels
    split_bytes += 4 * geometry.groups * geometry.filters
    splits = choose_splits(jobs, lines, split_bytes, multiprocessors)
    return WeightConfiguration(
        geometry=geometry,
        unit_filters=filters,
        unit_channels=channels,
        unit_taps=taps,
        slots=slots,
        loaders=loaders,
        line=line,
        strip=strip,
        rings=rings,
        slices=(
            -(-min(block_filters, geometry.filters) // VECTOR),
            -(-min(block_channels, geometry.channels) // VECTOR),
        ),
        x_columns=x_columns,
        load_bytes=load_bytes_of(geometry, line),
        jobs=jobs,
        splits=splits,
        split_lines=-(-lines // splits),
        workspace_bytes=splits * split_bytes,
    )


def slots_of(units: tuple[int, int, int]) -> int:
    """Units of a multiplying warpgroup."""
    return -(-math.prod(units) // CONSUMERS)


def block_bytes(geometry: WeightGeometry, slots: int) -> int:
    """Shared memory of a block, at most."""
    if geometry.products == 1:
        return BLOCK_BYTES
    few_sums = slots * geometry.unit_columns <= FEW_SUMS_OF_PARTS
    return PARTS_BLOCK_BYTES if few_sums else SUMS_BLOCK_BYTES


def loading_warpgroups(geometry: WeightGeometry, slots: int) -> int:
    """Two where loading takes longest, if registers suffice."""
    few_sums = slots * geometry.unit_columns <= FEW_SUMS[geometry.products]
    takes_longest = geometry.lanes > 0 or geometry.products == 3
    return 2 if takes_longest and few_sums else 1


def choose_splits(jobs: int, lines: int, split_bytes: int, multiprocessors: int) -> int:
    """Parts of all lines: as many as fill one round of blocks, or a few."""
    most = max(1, min(lines, WORKSPACE_BYTES // split_bytes))
    found = {min(max(rounds * multiprocessors // jobs, 1), most) for rounds in range(1, 5)}

    def time(splits: int) -> float:
        rounds = -(-jobs * splits // multiprocessors)
        return rounds * (-(-lines // splits) + LINES_OF_A_ROUND)

    return min(sorted(found), key=time)
