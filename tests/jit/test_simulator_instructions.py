"""The host twins of kernels/ptx/: what the simulator makes of shuffles and asynchronous copies."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convsmith.errors import SimulatorError
from convsmith.jit import simulator
from convsmith.jit.simulator import Buffer
from convsmith.kernels import source
from convsmith.kernels.source import KernelSource


def toy(name: str) -> KernelSource:
    """A kernel of the folder kernels/, with the library's headers that it includes."""
    text = Path(__file__).parent.joinpath("kernels", f"{name}.cu").read_text()
    return KernelSource(name, source._inline(text, set()))


def buffer(tensor: Tensor, writable: bool = False) -> Buffer:
    return Buffer(tensor.data_ptr(), tensor.numel() * tensor.element_size(), writable)


SHUFFLE, COPY = toy("shuffle"), toy("cp_async")
DEEDS = ("kSum", "kReturn", "kWaitAtABarrier", "kSumOnceMore")


def sums_of_warps(values: Tensor, deed: str = "kSum") -> Tensor:
    """What each thread of a block has after its warp, the first of all, has summed once."""
    sums = torch.full_like(values, torch.nan)
    problem = struct.pack("2q", DEEDS.index(deed), values.numel())
    given = [buffer(values), buffer(sums, writable=True)]
    simulator.run(SHUFFLE, problem, given, time_limit=60)
    return sums


def test_lanes_exchange_values() -> None:
    """Shuffle after shuffle, in warps that shuffle once, twice and three times."""
    values = torch.randint(-1000, 1000, (96,)).double()
    expected = values.reshape(3, 32).sum(1, keepdim=True) * torch.tensor([[1], [32], [32 * 32]])
    assert torch.equal(sums_of_warps(values), expected.expand(3, 32).flatten())


def test_all_64_bits_are_exchanged() -> None:
    values = torch.zeros(32).double()
    values[7] = torch.pi * 2.0**-900
    assert torch.equal(sums_of_warps(values), values[7].expand(32))


@pytest.mark.parametrize(
    ("deed", "other"),
    [
        ("kReturn", r"thread \(5, 0, 0\) has returned"),
        ("kWaitAtABarrier", r"thread \(\d+, 0, 0\) waits at "),
        ("kSumOnceMore", r"thread \(\d+, 0, 0\) has returned"),
    ],
)
def test_a_lane_that_does_not_take_part_is_reported(deed: str, other: str) -> None:
    with pytest.raises(SimulatorError) as caught:
        sums_of_warps(torch.randn(32).double(), deed)
    first = str(caught.value).splitlines()[0]
    place = re.search(rf"waits for ever at a shuffle on line (\d+): {other}", first)
    assert place is not None
    assert "shuffle_xor(sum, mask)" in SHUFFLE.cuda.splitlines()[int(place[1]) - 1]


def test_a_warp_that_is_not_full_cannot_shuffle() -> None:
    with pytest.raises(SimulatorError, match="waits for ever at a shuffle"):
        sums_of_warps(torch.randn(40).double())


THREADS = 33


def copy(run_bytes: int, given: Tensor, readable: int, offset: int = 0) -> Tensor:
    """What the threads of a block find in shared memory after they have copied a run each."""
    found = torch.full((THREADS * run_bytes // 4,), torch.nan)
    problem = struct.pack("4q", run_bytes, THREADS, readable, offset)
    simulator.run(COPY, problem, [buffer(given), buffer(found, writable=True)])
    return found


@pytest.mark.parametrize("run_bytes", [4, 8, 16])
def test_runs_are_copied_and_zeros_take_the_place_of_others(run_bytes: int) -> None:
    """Of those nothing is read: they are past the end of the buffer."""
    count = 20 * run_bytes // 4
    given = torch.randn(count)
    found = copy(run_bytes, given, readable=count)
    assert torch.equal(found[:count], given)
    assert (found[count:] == 0).all()
    with pytest.raises(SimulatorError, match="0 bytes past the end of buffer 0"):
        copy(run_bytes, given, readable=count + 1)


@pytest.mark.parametrize("run_bytes", [8, 16])
def test_a_misaligned_run_is_caught(run_bytes: int) -> None:
    """In global and in shared memory; where both are aligned, a place of its own is none."""
    count = THREADS * run_bytes // 4
    storage = torch.randn(count + 4)
    assert storage.data_ptr() % 16 == 0
    aligned = run_bytes // 4
    assert torch.equal(
        copy(run_bytes, storage[aligned : aligned + count], count, aligned),
        storage[aligned : aligned + count],
    )
    for offset in range(1, aligned):
        with pytest.raises(SimulatorError, match="misaligned address"):
            copy(run_bytes, storage[offset : offset + count], count)
        with pytest.raises(SimulatorError, match="misaligned address"):
            copy(run_bytes, storage[:count], count, offset)


PRODUCT = toy("wgmma")
MISTAKES = (
    "kNone",
    "kReleaseTooEarly",
    "kReadTooEarly",
    "kDoNotWait",
    "kReachTooFar",
    "kOverwriteTooEarly",
)


def product(
    a: Tensor,
    b: Tensor,
    majors: tuple[str, str] = ("k", "k"),
    mistake: str = "kNone",
    a_in_registers: bool = False,
) -> Tensor:
    """A * B of 16-bit matrices, by one warpgroup of what another one brings."""
    out = torch.full((64, b.shape[1]), torch.nan)
    numbers = (b.shape[1], a.shape[1], a.dtype is torch.bfloat16)
    kinds = (*(one == "mn" for one in majors), a_in_registers)
    problem = struct.pack("7q", *numbers, *kinds, MISTAKES.index(mistake))
    given = [buffer(a), buffer(b), buffer(out, writable=True)]
    simulator.run(PRODUCT, problem, given, time_limit=60)
    return out


def matrices(columns: int, terms: int, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    return torch.randn(64, terms).to(dtype), torch.randn(terms, columns).to(dtype)


@pytest.mark.parametrize("majors", [("k", "k"), ("k", "mn"), ("mn", "k"), ("mn", "mn")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [64, 128])
def test_a_warpgroup_multiplies(columns: int, dtype: torch.dtype, majors: tuple[str, str]) -> None:
    a, b = matrices(columns, 80, dtype)
    torch.testing.assert_close(
        product(a, b, majors).double(), a.double() @ b.double(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("b_major", ["k", "mn"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_warpgroup_multiplies_what_is_in_its_registers(dtype: torch.dtype, b_major: str) -> None:
    a, b = matrices(64, 80, dtype)
    ours = product(a, b, ("mn", b_major), a_in_registers=True)
    assert torch.equal(ours, product(a, b, ("mn", b_major)))


def test_registers_that_are_overwritten_too_early_are_found_out() -> None:
    mistake = "kOverwriteTooEarly"
    assert product(*matrices(64, 32), ("mn", "k"), mistake, a_in_registers=True).isnan().all()


def exponents(values: Tensor, least: int = -1000) -> Tensor:
    """Those of the leading bits, or ``least`` if that is more; of zero, one below all others."""
    return (values.frexp().exponent - 1).clamp(least).where(values != 0, -10000)


def truncated_product(a: Tensor, b: Tensor) -> Tensor:
    """A * B by the formula of MMA-Sim (arXiv 2511.10909), in float64.

    Of 16 terms at a time, exact products and the sum so far are aligned to the largest exponent and
    cut off after 25 fractional bits, and so is the result, to float32.
    """
    least = -14 if a.dtype is torch.float16 else -126
    sums = torch.zeros(a.shape[0], 1, b.shape[1]).double()
    for k in range(0, a.shape[1], 16):
        rows, columns = a[:, k : k + 16, None].double(), b[None, k : k + 16].double()
        terms = torch.cat([rows * columns, sums], dim=1)
        of_products = exponents(rows, least) + exponents(columns, least)
        largest = torch.cat([of_products, exponents(sums)], dim=1).amax(1, keepdim=True)
        unit = 2.0 ** (largest.clamp(-1000).double() - 25)
        exact, cut = terms.sum(1, True), ((terms / unit).trunc() * unit).sum(1, True)
        total = torch.where(exact.isfinite(), cut, exact)
        nearest = total.float()
        too_far = (nearest.double().abs() > total.abs()) & nearest.isfinite()
        sums = torch.where(too_far, nearest.nextafter(torch.tensor(0.0)), nearest).double()
    return sums[:, 0].float()


def numbers(shape: tuple[int, int], dtype: torch.dtype, lowest: int, highest: int) -> Tensor:
    """Random bits, but for the fields of the exponents, which are within these limits."""
    fraction_bits = 10 if dtype is torch.float16 else 7
    sign_and_fraction = torch.randint(-0x8000, 0x8000, shape) & ~(
        0x7FFF >> fraction_bits << fraction_bits
    )
    fields = torch.randint(lowest, highest + 1, shape)
    return (sign_and_fraction | fields << fraction_bits).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "kind", ["alike", "wide", "any", "tiny", "subnormal", "huge", "mostly-zeros", "inf-and-nan"]
)
def test_sums_are_cut_off_like_those_of_tensor_cores(kind: str, dtype: torch.dtype) -> None:
    """To the bit, but for the sign and the payload of NaN."""
    most = 30 if dtype is torch.float16 else 254  # the field of the largest numbers
    middle, wide, any_field = (most // 2 - 1, most // 2 + 1), (most // 4, most * 3 // 4), (0, most)
    of_a, of_b = {
        "alike": (middle, middle),
        "wide": (wide, wide),
        "tiny": ((0, 2), (0, 2)),
        "subnormal": ((0, 2), middle),  # and sums, of bfloat16
        "huge": ((most - 2, most), (most - 2, most)),
    }.get(kind, (any_field, any_field))
    a, b = numbers((64, 80), dtype, *of_a), numbers((80, 64), dtype, *of_b)
    if kind == "mostly-zeros":
        a[torch.rand(a.shape) < 0.9] = 0
        b[torch.rand(b.shape) < 0.9] = -0.0
    if kind == "inf-and-nan":
        a[::5, 3], a[2::5, 70], b[40, ::7], b[79, 3::7] = torch.inf, torch.nan, -torch.inf, 0
    torch.testing.assert_close(
        product(a, b), truncated_product(a, b), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("mistake", ["kReleaseTooEarly", "kReadTooEarly"])
def test_what_comes_too_early_is_found_out(mistake: str) -> None:
    """By another result, or by one that depends on the order of threads."""
    a, b = matrices(64, 80)
    wrong = False
    try:
        wrong = bool((product(a, b, mistake=mistake) - a.double() @ b.double()).abs().max() > 0.5)
    except SimulatorError as error:
        wrong = "depends on the order of threads" in str(error)
    assert wrong


def test_products_have_to_be_waited_for() -> None:
    with pytest.raises(SimulatorError, match="returned without waiting"):
        product(*matrices(64, 80), mistake="kDoNotWait")


def test_operands_lie_in_shared_memory() -> None:
    """To the last byte: here B's last core matrix begins within it and ends beyond."""
    with pytest.raises(SimulatorError, match=r"byte 8240 of shared memory \(8256 bytes\)"):
        product(*matrices(64, 80), mistake="kReachTooFar")


EIGHT_BITS = toy("e5m2")


def in_8_bits(values: Tensor) -> Tensor:
    """As the host twin rounds them."""
    out = torch.empty(values.shape, dtype=torch.float8_e5m2)
    given = [buffer(values), buffer(out, writable=True)]
    simulator.run(EIGHT_BITS, struct.pack("q", values.numel() // 4), given, time_limit=60)
    return out


def test_8_bits_are_rounded_as_pytorch_rounds_them() -> None:
    """All numbers of 8 bits, their neighbours, what lies between, and tiny and special ones."""
    exact = torch.arange(256, dtype=torch.uint8).view(torch.float8_e5m2).float()
    exact = exact[exact.isfinite()]
    sorted_ones = exact.unique()
    halfway = (sorted_ones[1:] + sorted_ones[:-1]) / 2
    inf = torch.tensor(torch.inf)
    near = [one.nextafter(to) for one in (exact, halfway) for to in (inf, -inf)]
    values = torch.cat([exact, halfway, *near, 1e-3 * torch.randn(4000), 1e-6 * torch.randn(4000)])
    values = values[: values.numel() // 4 * 4].contiguous()
    assert torch.equal(in_8_bits(values).float(), values.to(torch.float8_e5m2).float())


def test_what_8_bits_are_too_few_for_becomes_the_largest_number() -> None:
    values = torch.tensor([61440.0, 1e30, torch.inf, -torch.inf, 57344.0, 61439.0, -1e5, torch.nan])
    found = in_8_bits(values).float()
    assert found[:7].tolist() == [57344.0, 57344.0, 57344.0, -57344.0, 57344.0, 57344.0, -57344.0]
    assert found[7].isnan()


def test_a_warpgroup_multiplies_numbers_of_8_bits() -> None:
    """32 terms at once, of whose sum 13 fractional bits are left."""
    a, b = (torch.randn(rows, 32).to(torch.float8_e5m2) for rows in (64, 128))
    out = torch.full((64, 128), torch.nan)
    simulator.run(
        EIGHT_BITS, b"", [buffer(a), buffer(b), buffer(out, writable=True)], time_limit=60
    )
    exact = a.double() @ b.double().T
    largest = (a.double().abs()[:, None] * b.double().abs()).amax(-1)
    assert ((out.double() - exact).abs() <= 34 * 2.0**-13 * (largest + exact.abs())).all()
    assert not torch.equal(out.double(), exact)
