"""What is decided when the implicit_gemm family cuts a convolution into tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convsmith.spec import Pair

HALF = 128  # pixels
ROWS_OF_BLOCK = 64  # filters of a warpgroup
# Vectors of an operand, by the products that make one: kParts of implicit_gemm_problem.cuh.
PARTS = {1: 1, 3: 2, 4: 2, 5: 3}
WARPGROUP = 128  # threads
WGMMA_TERMS = 16  # channels


@dataclass(frozen=True)
class Halves:
    """The two halves of a tile, of 128 pixels each, or a single one.

    Args:
        columns: of a half: 8, and 16 rows; or 128, and one row.
        down, right: from the first half to the second; 0 where there is none.
        is_flat: a row of the output goes on in the next one, and a tile with it.
        owns_sectors: a half stores whole sectors of its row, with the first pixels of the next
            half, for memory reads what is stored in part; so both compute those pixels.
    """

    columns: int
    down: int
    right: int
    is_flat: bool = False
    owns_sectors: bool = False

    @property
    def count(self) -> int:
        """Of halves."""
        return 2 if self.down or self.right else 1

    @property
    def rows(self) -> int:
        """Of all halves together."""
        return HALF // self.columns + self.down

    @property
    def width(self) -> int:
        """Columns of all halves together."""
        return self.columns + self.right

    @property
    def is_narrow(self) -> bool:
        """Whether a half is many short rows."""
        return self.columns < HALF


DOUBLE_SHAPES = (
    Halves(128, 1, 0),
    Halves(128, 1, 0, owns_sectors=True),
    Halves(8, 0, 8),
    Halves(8, 16, 0),
    Halves(128, 0, 128, is_flat=True),
)
SINGLE_SHAPES = (
    Halves(128, 0, 0),
    Halves(128, 0, 0, owns_sectors=True),
    Halves(8, 0, 0),
    Halves(128, 0, 0, is_flat=True),
)


@dataclass(frozen=True)
class Sums:
    """How products are summed.

    Args:
        products: of operands that make one.
        most_terms: that the tensor cores sum up, of 16 channels of a tap each, where there are
            several products.
        compensates: what is lost when their sums are added is kept.
        most_stage_taps: of a stage of weights.
    """

    products: int
    most_terms: int
    compensates: bool
    most_stage_taps: int

    def terms_of(self, stage_terms: int) -> int:
        """The most of a stage's terms that are summed up at once, in equal shares."""
        return max(one for one in range(1, self.most_terms + 1) if stage_terms % one == 0)


@dataclass(frozen=True)
class Patch:
    """What a tile of outputs meets of a channel. Pairs are (rows, columns).

    Args:
        tile: of outputs that are stored.
        group_shift: from one warpgroup's pixels to the other's.
        phases: of the stride, that taps meet.
        rows, pitch: of each phase, in pixels.
        row_pixels: from a row of taps to the next one of its phase.
        run_lead: pixels of a row before the first that taps meet, for runs of 16 bytes to be
            copied; None where elements are.
    """

    tile: Pair
    group_shift: Pair
    phases: Pair
    rows: int
    pitch: int
    row_pixels: int
    run_lead: int | None = None

    @property
    def pixels(self) -> int:
        """Of all phases."""
        return math.prod(self.phases) * self.rows * self.pitch


@dataclass(frozen=True)
class Rings:
    """How shared memory is shared out.

    Args:
        channel_blocks, block_channels: patches of a tile, and channels of a patch.
        ahead: groups of vectors that a loading thread has on their way.
        patch_stages, weight_stages: of the rings.
        weights_stay: the ring of weights holds all of them.
        shared_bytes: of a block.
        weight_bytes: all weights of 64 filters.
    """

    channel_blocks: int
    block_channels: int
    ahead: int
    patch_stages: int
    weight_stages: int
    weights_stay: bool
    shared_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class Configuration:
    """How one ConvSpec is cut into blocks. Pairs are (rows, columns).

    Args:
        sums: how products are summed.
        unfolds: each channel and column of the filter is a channel of its own.
        piece: elements of an unfolded vector that are copied as one.
        lead: zeros before the first column of unfolded filters.
        way: of `forwards_of` the spec, by number.
        filter_blocks: of a group.
        splits_filters: the warpgroups of a tile have filters of their own, and share pixels.
        shape: of the halves of a tile.
        tall_height: padded input rows of an image.
        patch: what a tile meets of the input.
        vectors: of channels, that are loaded for a pixel of all patches.
        rings: how shared memory is shared out.
        stores_in_turn: the warpgroups do, so that one multiplies meanwhile.
        stores_pairs, stores_in_bulk, stores_runs: how sums are stored, the first that holds;
            none: one by one.
        stage_taps: of a stage of weights.
        met_taps: of a tile, with those that fill its last stage: the mean, or the most where
            a block has but one tile.
        tiles: of outputs, down all images and across.
        all_tiles: of these, of all groups and filter blocks.
        blocks: of the grid.
        workspace_bytes: packed weights.
    """

    sums: Sums
    way: int
    filter_blocks: int
    splits_filters: bool
    unfolds: bool
    piece: int
    lead: int
    shape: Halves
    tall_height: int
    patch: Patch
    vectors: int
    rings: Rings
    stores_in_turn: bool
    stores_pairs: bool
    stores_in_bulk: bool
    stores_runs: bool
    stage_taps: int
    met_taps: float
    tiles: Pair
    all_tiles: int
    blocks: int
    workspace_bytes: int

    @property
    def products(self) -> int:
        """Of operands, that make one."""
        return self.sums.products

    @property
    def sum_terms(self) -> int:
        """Of 16 channels of a tap, that the tensor cores sum up; of several products."""
        return self.sums.terms_of(self.stage_taps * self.rings.block_channels // WGMMA_TERMS)

    @property
    def loaders(self) -> int:
        """Warpgroups that bring patches and weights."""
        return loaders_of(self.sums, self.shape)

    @property
    def loading_threads(self) -> int:
        """Of these, that bring patches."""
        return loading_threads(self.sums, self.shape)

    @property
    def rounds(self) -> int:
        """Tiles that a block goes over, the one with the most."""
        return -(-self.all_tiles // self.blocks)

    @property
    def has_padded_runs(self) -> bool:
        """Whether tiles are flat and have what is padding between the rows they go over."""
        return self.shape.is_flat and not self.unfolds

    @property
    def block_filters(self) -> int:
        """Filters that a block multiplies with a tile."""
        return 2 * ROWS_OF_BLOCK if self.splits_filters else ROWS_OF_BLOCK


def loaders_of(sums: Sums, shape: Halves) -> int:
    """How many warpgroups load: as many as those that multiply leave registers for.

    Those keep the sums of each half, of several products those that are not added yet, and what
    rounding loses.
    """
    has_many_sums = sums.products > 1 and (shape.count == 2 or sums.compensates)
    return 1 if has_many_sums else 2


def loading_threads(sums: Sums, shape: Halves) -> int:
    """Threads of these, but for the warp that brings weights: they bring patches."""
    return loaders_of(sums, shape) * WARPGROUP - 32
