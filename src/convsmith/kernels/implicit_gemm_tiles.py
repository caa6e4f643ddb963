"""How the implicit_gemm family cuts a convolution into tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convsmith.kernels.implicit_gemm_accuracy import sums_of
from convsmith.kernels.implicit_gemm_cut import (
    DOUBLE_SHAPES,
    HALF,
    PARTS,
    ROWS_OF_BLOCK,
    SINGLE_SHAPES,
    Configuration,
    Halves,
    Patch,
    Sums,
    loading_threads,
)
from convsmith.kernels.implicit_gemm_forward import Forward, forwards_of
from convsmith.kernels.implicit_gemm_rings import MOST_TAPS, VECTOR, BlockUse, share_out
from convsmith.kernels.implicit_gemm_times import tiles_us
from convsmith.spec import ConvSpec, Pair

MOST_PATCH_ROWS = 2**15  # of the input, that a patch reaches over
MOST_PATCH_COLUMNS = 2**16


def configure_tiles(spec: ConvSpec, multiprocessors: int) -> Configuration | None:
    """The tiling for ``spec`` on a GPU of ``multiprocessors``; None where none fits."""
    tilings = timed_tilings(spec, multiprocessors)
    return min(tilings, key=lambda timed: timed[0])[1] if tilings else None


def timed_tilings(spec: ConvSpec, multiprocessors: int) -> list[tuple[float, Configuration]]:
    """All tilings for ``spec`` that fit, each with its predicted time in microseconds."""
    return [
        (tiles_us(forward, one), one)
        for way, forward in enumerate(forwards_of(spec))
        for one in fitting_tilings(spec, way, multiprocessors)
    ]


def fitting_tilings(spec: ConvSpec, way: int, multiprocessors: int) -> list[Configuration]:
    """Tilings that compute ``spec`` in a way of `forwards_of`, and fit into shared memory."""
    forward = forwards_of(spec)[way]
    sums = sums_of(forward, spec)
    shapes = SINGLE_SHAPES if sums.compensates else (*SINGLE_SHAPES, *DOUBLE_SHAPES)
    # Few filters leave a warpgroup none of its own: it takes more pixels, if their patch fits.
    splits = (False, True) if forward.filters <= ROWS_OF_BLOCK else (True,)
    fitting = []
    for shape in shapes:
        attempts = (attempt(forward, way, sums, multiprocessors, one, shape) for one in splits)
        first = next(filter(None, attempts), None)
        if first is not None:
            fitting.append(first)
    return fitting


def attempt(
    forward: Forward,
    way: int,
    sums: Sums,
    multiprocessors: int,
    splits_filters: bool,
    shape: Halves,
) -> Configuration | None:
    """One tiling, or None where it does not fit into shared memory."""
    if shape.owns_sectors and not can_own_sectors(forward):
        return None
    if shape.is_flat and not can_be_flat(forward):
        return None
    patch, taps = patch_of(forward, sums, splits_filters, shape), taps_of(forward, sums)
    stride = forward.stride
    if patch.rows * stride[0] >= MOST_PATCH_ROWS:
        return None
    if patch.pitch * stride[1] >= MOST_PATCH_COLUMNS:
        return None
    if len(taps.counts) * taps.most > MOST_TAPS:
        return None
    block_filters = ROWS_OF_BLOCK * (2 if splits_filters else 1)
    filter_blocks = len(taps.counts) * -(-forward.filters // block_filters)
    use = BlockUse(
        parts=PARTS[sums.products],
        loading_threads=loading_threads(sums, shape),
        itemsize=forward.itemsize,
        channels=unfolded_channels(forward) if forward.unfolds else forward.channels,
        unfolds=forward.unfolds,
        interleaves=forward.phases is not None,
        pixels=patch.pixels,
        rings=2 if splits_filters else 1,
        filter_blocks=forward.groups * filter_blocks,
        stage_taps=taps.of_stage,
        most_taps=taps.most,
        has_few_taps=forward.unfolds or max(forward.tap_counts) == 1,
    )
    rings = share_out(use)
    if rings is None:
        return None
    piece, lead = choose_piece(forward) if forward.unfolds else (1, 0)
    tall_height = spacing(forward, axis=0)
    tiles = count_tiles(forward, tall_height // stride[0], patch.tile, shape)
    padded = forward.groups * filter_blocks * block_filters
    all_tiles = math.prod(tiles) * forward.groups * filter_blocks
    blocks = choose_blocks(all_tiles, multiprocessors, len(taps.counts))
    return Configuration(
        sums=sums,
        way=way,
        filter_blocks=filter_blocks,
        splits_filters=splits_filters,
        unfolds=forward.unfolds,
        piece=piece,
        lead=lead,
        shape=shape,
        tall_height=tall_height,
        patch=patch,
        vectors=-(-use.channels // VECTOR),
        rings=rings,
        stores_in_turn=stores_in_turn(forward, splits_filters, shape),
        stores_pairs=stores_pairs(forward, shape),
        stores_in_bulk=stores_in_bulk(forward, shape),
        stores_runs=stores_runs(forward, shape),
        stage_taps=taps.of_stage,
        met_taps=taps.most if blocks == all_tiles else sum(taps.counts) / len(taps.counts),
        tiles=tiles,
        all_tiles=all_tiles,
        blocks=blocks,
        workspace_bytes=padded // ROWS_OF_BLOCK * rings.weight_bytes + 4 * padded,
    )


def patch_of(forward: Forward, sums: Sums, splits_filters: bool, shape: Halves) -> Patch:
    """That of a tile of ``shape``; of twice that, where warpgroups have pixels of their own."""
    if splits_filters:
        group_shift, tile = (0, 0), (shape.rows, shape.width)
    elif shape.is_flat:
        group_shift, tile = (0, shape.width), (1, 2 * shape.width)
    else:
        group_shift, tile = (shape.rows, 0), (2 * shape.rows, shape.width)
    phases, reach = met_phases(forward)
    if shape.is_flat:
        row_pixels = flat_columns_of(forward)
        pitch = tile[1] + reach[0] * row_pixels + reach[1]
        return Patch(tile, group_shift, phases, 1, pitch, row_pixels)
    rows, pitch = tile[0] + reach[0], tile[1] + reach[1]
    if shape.owns_sectors:
        tile = (tile[0], owned_columns(forward))
    if shape.is_narrow or not copies_runs(forward, sums):
        return Patch(tile, group_shift, phases, rows, pitch, row_pixels=pitch)
    run_lead = -forward.padding[1] % forward.run
    pitch = -(-(run_lead + pitch) // forward.run) * forward.run
    return Patch(tile, group_shift, phases, rows, pitch, pitch, run_lead)


def copies_runs(forward: Forward, sums: Sums) -> bool:
    """Whether long rows of the input are copied by runs of 16 bytes, in the image or beyond it.

    They have to be aligned. Of one product of float32 values loading is not what takes longest.
    """
    if forward.unfolds or (sums.products == 1 and forward.itemsize == 4):
        return False
    steps = (forward.in_size[1], *forward.in_strides[:3])
    in_runs = forward.in_strides[3] == 1 and all(step % forward.run == 0 for step in steps)
    return in_runs and forward.stride == (1, 1)


def spacing(forward: Forward, axis: int) -> int:
    """Input rows from an image to the next one, or columns from a row to the next.

    Whole strides. What outputs meet beyond the end of one may lie in the next one's padding.
    """
    stride, padding = forward.stride[axis], forward.padding[axis]
    met = (forward.out_size[axis] - 1) * stride + forward.reach[axis] + 1
    own = min(met, padding + forward.in_size[axis])
    least = max(own, met - max(padding, 0), forward.out_size[axis] * stride)
    return -(-least // stride) * stride


def can_be_flat(forward: Forward) -> bool:
    """Whether a tile may be a run of pixels across rows, with what is padding between these."""
    if forward.phases is not None:
        return False
    if forward.unfolds:
        return True
    *_, of_row, of_column = forward.out_strides
    columns = forward.out_size[1]
    has_short_rows = columns <= HALF and (of_row, of_column) == (columns, 1)
    return has_short_rows and forward.stride == (1, 1)


def flat_columns_of(forward: Forward) -> int:
    """From a row of a flat tile to the next one; unfolded channels need no padding between."""
    return forward.out_size[1] if forward.unfolds else spacing(forward, axis=1)


def owned_pitch(forward: Forward) -> int:
    """From a row to the next one, where the last tile that owns a row's sectors goes on in it.

    What is copied as one, of up to 16 bytes, is of one of them. Of negative padding the next
    row's first columns are met by none of its outputs.
    """
    columns = spacing(forward, axis=1) - min(forward.padding[1], 0)
    return -(-columns // forward.stride[1] // forward.run) * forward.run


def columns_between_rows(forward: Forward, shape: Halves) -> int:
    """From a row to the next one, for tiles that reach over both; 0 for those that do not."""
    if shape.is_flat:
        return flat_columns_of(forward)
    return owned_pitch(forward) if shape.owns_sectors else 0


def last_owned(forward: Forward) -> int:
    """The first column from which on a tile reaches the end of the sector that ends a row."""
    return owned_pitch(forward) + forward.sector - 1 - HALF


def owned_columns(forward: Forward) -> int:
    """Columns whose sectors a long tile owns; 0 where no number suits.

    The last tile of a row has the first pixels of the next row, with which the row's last
    sector ends; the one before it ends within the row.
    """
    most = forward.out_size[1] - forward.sector + 1
    for before in range(1, most // forward.sector):
        columns = min(most // before, HALF - forward.sector + 1) // forward.run * forward.run
        if before * columns >= last_owned(forward):
            return columns
    return 0


def met_phases(forward: Forward) -> tuple[Pair, Pair]:
    """Phases of the stride that taps meet, and how many pixels those of a phase reach over."""
    if forward.phases is not None:
        return (1, 1), (forward.reach[0], 0 if forward.unfolds else forward.reach[1])
    phases, reach = [1, 1], [0, 0]
    kernel = (forward.kernel[0], 1) if forward.unfolds else forward.kernel
    axes = zip(kernel, forward.stride, forward.dilation, strict=True)
    for axis, (taps, step, dilation) in enumerate(axes):
        phases[axis] = met = min(taps, step // math.gcd(step, dilation))
        places = [(r * dilation - r % met * dilation % step) // step for r in range(taps)]
        reach[axis] = max(places)
    return (phases[0], phases[1]), (reach[0], reach[1])


@dataclass(frozen=True)
class StagedTaps:
    """The taps of each kind of filter blocks, in stages of weights.

    Args:
        of_stage: taps.
        counts: of each kind, with those that fill its last stage.
    """

    of_stage: int
    counts: tuple[int, ...]

    @property
    def most(self) -> int:
        """Of a kind."""
        return max(self.counts)


def taps_of(forward: Forward, sums: Sums) -> StagedTaps:
    """Of unfolded channels, each column of the filter is a channel, and only rows are taps."""
    columns = forward.kernel[1] if forward.unfolds else 1
    counts = tuple(count // columns for count in forward.tap_counts)
    of_stage = choose_stage_taps(counts, sums.most_stage_taps)
    return StagedTaps(of_stage, tuple(-(-count // of_stage) * of_stage for count in counts))


def count_tiles(forward: Forward, tall_out: int, tile: Pair, shape: Halves) -> Pair:
    """Down all images, of ``tall_out`` rows each, and across."""
    rows, columns = forward.batch * tall_out, forward.out_size[1]
    if shape.is_flat:
        rows, columns = 1, rows * flat_columns_of(forward)
    elif shape.owns_sectors:
        columns = last_owned(forward) + tile[1]
    return (-(-rows // tile[0]), -(-columns // tile[1]))


def unfolded_channels(forward: Forward) -> int:
    """Where there are few: each with each of the filter's columns, which fill whole vectors."""
    return forward.channels * -(-forward.kernel[1] // VECTOR) * VECTOR


def choose_piece(forward: Forward) -> tuple[int, int]:
    """Elements of an unfolded vector that are copied as one; zeros before its filter's columns.

    Pieces lie in memory as such copies must, and are within the image or beyond it.
    """
    if forward.itemsize != 4 or forward.dilation[1] != 1 or forward.in_strides[3] != 1:
        return 1, 0
    columns = forward.kernel[1]
    for piece in (4, 2):
        lead = -forward.padding[1] % piece
        steps = (forward.stride[1], forward.in_size[1], *forward.in_strides[:3])
        fits = -(-(columns + lead) // VECTOR) == -(-columns // VECTOR)
        if fits and all(step % piece == 0 for step in steps):
            return piece, lead
    return 1, 0


def stores_pairs(forward: Forward, shape: Halves) -> bool:
    """Whether threads store pairs of neighbours: in short rows that are whole pairs."""
    return shape.is_narrow and has_rows_of(forward, 2)


def stores_in_bulk(forward: Forward, shape: Halves) -> bool:
    """Whether the copy engine stores the rows of a half: long ones of whole 16 bytes."""
    is_long = not shape.is_narrow and not shape.is_flat
    return is_long and not shape.owns_sectors and has_rows_of(forward, forward.run)


def has_rows_of(forward: Forward, elements: int) -> bool:
    """Whether rows of the output are so many neighbours in memory, or times as many."""
    is_whole = forward.out_strides[3] == 1 and forward.out_size[1] % elements == 0
    return is_whole and forward.out_rows_begin_at_multiples_of(elements)


def stores_runs(forward: Forward, shape: Halves) -> bool:
    """Whether the pixels of a half are neighbours in memory, those of an image at least."""
    *_, of_row, of_column = forward.out_strides
    goes_on = of_row == forward.out_size[1] or not shape.is_flat
    return not shape.is_narrow and of_column == 1 and goes_on


def stores_in_turn(forward: Forward, splits_filters: bool, shape: Halves) -> bool:
    """Whether warpgroups had better store in turn, as measured: short rows, of own filters."""
    has_phases = forward.phases is not None
    return shape.is_narrow and splits_filters and forward.itemsize == 4 and not has_phases


def can_own_sectors(forward: Forward) -> bool:
    """Whether tiles of long rows would share sectors, and may own them instead.

    Rows follow one another, for the last sector of one to be a tile's with the next row's
    start.
    """
    if forward.phases is not None or forward.out_size[1] <= HALF:
        return False
    in_whole_sectors = forward.out_rows_begin_at_multiples_of(forward.sector)
    follow = forward.out_strides[2:] == (forward.out_size[1], 1)
    return follow and not in_whole_sectors and owned_columns(forward) > 0


def choose_blocks(tiles: int, multiprocessors: int, kinds: int) -> int:
    """Blocks of the grid. Each comes across filter blocks of all kinds, which take turns."""
    if tiles <= multiprocessors:
        return tiles
    return next(one for one in range(multiprocessors, 0, -1) if math.gcd(one, kinds) == 1)


def choose_stage_taps(counts: tuple[int, ...], most: int) -> int:
    """Taps of a stage of weights: few enough for a ring, and fitting well into all of them.

    What a stage takes beside its taps weighs as much as half of one.
    """
    return min(
        range(most, 0, -1),
        key=lambda one: sum(-(-count // one) for count in counts) * (one + 0.5),
    )
