"""The simulator on toy kernels: what it runs, what it stops, and how it says so."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convsmith.errors import SimulatorError
from convsmith.jit import simulator
from convsmith.jit.simulator import Buffer
from convsmith.kernels.source import KernelSource

KERNELS = Path(__file__).parent / "kernels"
ELEMENTS = 100
SHARED_BYTES = 320


def toy(name: str) -> KernelSource:
    return KernelSource(name, KERNELS.joinpath(f"{name}.cu").read_text())


def buffer(tensor: Tensor, writable: bool = False) -> Buffer:
    return Buffer(tensor.data_ptr(), tensor.numel() * tensor.element_size(), writable)


MISBEHAVE = toy("misbehave")
DEEDS = re.findall(r"^    (k\w+),$", MISBEHAVE.cuda, re.MULTILINE)


def do(deed: str, input: Tensor | None, output: Tensor, time_limit: float = 60.0) -> None:
    """Runs misbehave.cu in two blocks of 64 threads."""
    problem = struct.pack("5q", DEEDS.index(deed), output.numel(), 2, 64, SHARED_BYTES)
    given = [None if input is None else buffer(input), buffer(output, writable=True)]
    simulator.run(MISBEHAVE, problem, given, time_limit=time_limit)


def error_of(deed: str, input: Tensor | None = None, time_limit: float = 60.0) -> str:
    """What the simulator says of a deed; the output is as it was, and a further launch works."""
    source = torch.randn(ELEMENTS) if input is None else input
    before = torch.randn(ELEMENTS)
    output = before.clone()
    with pytest.raises(SimulatorError) as caught:
        do(deed, source, output, time_limit)
    assert torch.equal(output, before)
    do("kCopy", source, output)
    assert count_of_equals(output, source) == ELEMENTS - 1
    return str(caught.value)


def count_of_equals(one: Tensor, other: Tensor) -> int:
    return int((one == other).sum())


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("kReadPastTheEnd", "read 4 bytes, 0 bytes past the end of buffer 0 (400 bytes)"),
        ("kReadBeforeTheBeginning", "read 4 bytes, 4 bytes before the beginning of buffer 0"),
        ("kWritePastTheEnd", "wrote 4 bytes, 0 bytes past the end of buffer 1 (400 bytes)"),
        ("kWriteBeforeTheBeginning", "wrote 4 bytes, 4 bytes before the beginning of buffer 1"),
        ("kWriteFarPastTheEnd", "wrote 4 bytes, 396 bytes past the end of buffer 1"),
        ("kWriteToTheInput", "wrote at byte 12 of buffer 0 (400 bytes), which is read-only"),
        ("kReadPastShared", "read 4 bytes, 0 bytes past the end of shared memory (320 bytes)"),
        ("kWritePastShared", "wrote 4 bytes, 0 bytes past the end of shared memory"),
        ("kWriteBeforeShared", "wrote 4 bytes, 4 bytes before the beginning of shared memory"),
        ("kOverflow", "was stopped: signed integer overflow: 2147483647 + 1"),
        ("kShiftTooFar", "was stopped: shift exponent 2147483647 is too large"),
        ("kIndexOutOfBounds", "was stopped: index 64 out of bounds for type 'float [4]'"),
        ("kConvertTooLarge", "outside the range of representable values of type 'int'"),
        ("kReadPastALocal", "was stopped: stack-buffer-overflow"),
        ("kRecurseForEver", "was stopped: stack-overflow"),
    ],
)
def test_a_bad_access_is_named_with_its_thread_and_its_line(deed: str, words: str) -> None:
    message = error_of(deed)
    first, line = message.splitlines()[:2]
    assert first.startswith("misbehave: thread (5, 0, 0) of block (0, 0, 0) ")
    assert words in first
    place = re.fullmatch(r"  line (\d+): (.+)", line)
    assert place is not None
    assert MISBEHAVE.cuda.splitlines()[int(place[1]) - 1].strip() == place[2]
    assert "#0 " in message  # the sanitizer's own report follows


def test_every_call_that_led_to_the_place_is_named() -> None:
    lines = re.findall(r"^  line \d+: (.*)$", error_of("kReadInAFunction"), re.MULTILINE)
    assert lines == ["return *pointer;", "out[0] = read(in + n);"]


def test_a_null_pointer_is_not_followed() -> None:
    with pytest.raises(SimulatorError, match="null pointer"):
        do("kReadNull", None, torch.zeros(ELEMENTS))


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_a_vector_load_that_is_misaligned_for_the_caller_is_misaligned_here(offset: int) -> None:
    storage = torch.randn(ELEMENTS + 4)
    assert storage.data_ptr() % 16 == 0
    assert "misaligned address" in error_of("kLoadAVector", storage[offset : offset + ELEMENTS])


def test_an_aligned_vector_load_is_none_of_the_simulators_business() -> None:
    source = torch.randn(ELEMENTS + 4)[4:]
    output = torch.zeros(ELEMENTS)
    do("kLoadAVector", source, output)
    assert output[5] == source[1]


def test_a_misaligned_buffer_is_fenced_to_the_byte() -> None:
    """AddressSanitizer cannot poison the four bytes before it; they are watched all the same."""
    source = torch.randn(ELEMENTS)
    output = torch.zeros(ELEMENTS + 1)[1:]
    assert output.data_ptr() % 8 == 4
    with pytest.raises(SimulatorError, match="wrote just before the beginning of buffer 1"):
        do("kWriteBeforeTheBeginning", source, output)
    with pytest.raises(SimulatorError, match="0 bytes past the end of buffer 1"):
        do("kWritePastTheEnd", source, output)


def test_shared_memory_is_nan_until_it_is_written() -> None:
    output = torch.zeros(ELEMENTS)
    do("kReadUnwrittenShared", torch.randn(ELEMENTS), output)
    assert output[5].isnan()


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        ("kReturnBeforeABarrier", r"waits for ever at __syncthreads .* thread \(5, 0, 0\) has re"),
        ("kMeetAtTwoBarriers", r"thread \(5, 0, 0\) .* while others wait at the one on line \d+"),
    ],
)
def test_threads_that_miss_each_other_at_a_barrier(deed: str, words: str) -> None:
    assert re.search(words, error_of(deed).splitlines()[0])


@pytest.mark.parametrize(
    "deed", ["kMissABarrier", "kMissABarrierTheOtherWay", "kWriteOneElementFromTwoBlocks"]
)
def test_a_result_that_depends_on_the_order_of_threads(deed: str) -> None:
    message = error_of(deed)
    assert "depends on the order of threads: buffer 1 differs from byte" in message


def test_a_kernel_without_end_is_stopped_at_the_time_limit() -> None:
    message = error_of("kRunForEver", time_limit=0.3)
    assert message.startswith(
        "misbehave: thread (5, 0, 0) of block (0, 0, 0) was still running at the time limit"
    )
    assert "while (number != 0) {" in message


def test_a_buffer_is_updated_once_though_the_launch_runs_twice() -> None:
    before = torch.randn(ELEMENTS)
    output = before.clone()
    do("kCountUp", torch.randn(ELEMENTS), output)
    assert torch.equal(output, before + 1)


def test_what_a_kernel_prints_comes_out_and_disturbs_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    source, output = torch.randn(ELEMENTS), torch.zeros(ELEMENTS)
    do("kPrint", source, output)
    assert count_of_equals(output, source) == ELEMENTS - 1
    printed, errors = capfd.readouterr()
    assert printed == ""
    assert errors == "thread 5 of block 0\n" * 2  # once in either order


def test_the_kernels_own_error_text_is_passed_on() -> None:
    with pytest.raises(SimulatorError, match=r"^misbehave: called in another way$"):
        simulator.run(MISBEHAVE, b"", [])


INDICES = toy("indices")


def launch_indices(
    grid: Sequence[int], block: Sequence[int], shared_bytes: int, output: Tensor
) -> None:
    problem = struct.pack("7q", *grid, *block, shared_bytes)
    simulator.run(INDICES, problem, [buffer(output, writable=True)])


@pytest.mark.parametrize(
    ("grid", "block"), [((2, 3, 2), (4, 2, 3)), ((1, 1, 5), (1, 1, 1)), ((3, 1, 1), (37, 1, 1))]
)
def test_every_thread_of_every_block_runs_once(
    grid: tuple[int, int, int], block: tuple[int, int, int]
) -> None:
    threads = block[0] * block[1] * block[2]
    output = torch.full((*reversed(grid), *reversed(block), 7), -1, dtype=torch.int32)
    launch_indices(grid, block, 4 * threads, output)
    places = torch.meshgrid(*map(torch.arange, output.shape[:-1]), indexing="ij")
    expected = torch.stack([*reversed(places[3:]), *reversed(places[:3])], dim=-1)
    assert torch.equal(output[..., :6].long(), expected)
    assert (output[..., 6] == threads * (threads - 1) // 2).all()


KIB = 1024


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "words"),
    [
        ((0, 1, 1), (32, 1, 1), 0, "invalid configuration argument"),
        ((2**31, 1, 1), (32, 1, 1), 0, "invalid configuration argument"),
        ((1, 65536, 1), (32, 1, 1), 0, "invalid configuration argument"),
        ((1, 1, 65536), (32, 1, 1), 0, "invalid configuration argument"),
        ((1, 1, 1), (1025, 1, 1), 0, "invalid configuration argument"),
        ((1, 1, 1), (32, 33, 1), 0, "invalid configuration argument"),
        ((1, 1, 1), (1, 1, 65), 0, "invalid configuration argument"),
        ((1, 1, 1), (0, 1, 1), 0, "invalid configuration argument"),
        ((1, 1, 1), (32, 1, 1), 227 * KIB + 1, "invalid argument"),
    ],
)
def test_a_launch_that_cuda_would_refuse_is_refused(
    grid: tuple[int, int, int], block: tuple[int, int, int], shared_bytes: int, words: str
) -> None:
    with pytest.raises(SimulatorError, match=f"^indices: {words}$"):
        launch_indices(grid, block, shared_bytes, torch.zeros(1, dtype=torch.int32))


def test_the_largest_block_with_the_most_shared_memory_runs() -> None:
    output = torch.zeros(1024, 7, dtype=torch.int32)
    launch_indices((1, 1, 1), (1024, 1, 1), 227 * KIB, output)
    assert (output[:, 6] == 1024 * 1023 // 2).all()


def test_the_16_bit_types_convert_as_pytorch_does() -> None:
    """All 2**16 values up; down, the midpoints and their neighbours, and random bits."""
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    halves, bfloats = patterns.view(torch.float16), patterns.view(torch.bfloat16)
    exact = torch.cat([halves.float(), bfloats.float()])
    midpoints = (exact[1:].double() + exact[:-1].double()).div(2).float()
    bits = torch.cat([exact, midpoints]).view(torch.int32)
    random = torch.randint(-(2**31), 2**31 - 1, (2**16,), dtype=torch.int32)
    floats = torch.cat([bits, bits + 1, bits - 1, random]).view(torch.float32)
    count = floats.numel()
    halves, bfloats = halves.repeat(count // 2**16 + 1), bfloats.repeat(count // 2**16 + 1)

    up_halves, up_bfloats, least, greatest = (torch.zeros(count) for _ in range(4))
    down_halves = torch.zeros(count, dtype=torch.float16)
    down_bfloats = torch.zeros(count, dtype=torch.bfloat16)
    inputs = [buffer(halves), buffer(bfloats), buffer(floats)]
    outputs = [up_halves, up_bfloats, down_halves, down_bfloats, least, greatest]
    given = [*inputs, *(buffer(output, writable=True) for output in outputs)]
    simulator.run(toy("convert"), struct.pack("q", count), given)

    assert_same(up_halves, halves[:count].float())
    assert_same(up_bfloats, bfloats[:count].float())
    assert_same(down_halves, floats.half())
    assert_same(down_bfloats, floats.bfloat16())
    assert_same(least, torch.fmin(floats, torch.tensor(0.5)))
    assert_same(greatest, torch.fmax(floats, torch.tensor(0.5)))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal to the bit, but for what a NaN carries."""
    integers = torch.int16 if actual.element_size() == 2 else torch.int32
    is_nan = expected.isnan()
    assert torch.equal(actual.isnan(), is_nan)
    assert torch.equal(actual.view(integers)[~is_nan], expected.view(integers)[~is_nan])


def test_empty_and_absent_buffers() -> None:
    output = torch.zeros(0)
    do("kCountUp", None, output)
    with pytest.raises(SimulatorError, match="0 bytes past the end of buffer 1"):
        simulator.run(
            MISBEHAVE,
            struct.pack("5q", DEEDS.index("kWritePastTheEnd"), 0, 1, 64, SHARED_BYTES),
            [None, Buffer(torch.zeros(1).data_ptr(), 0, writable=True)],
        )
