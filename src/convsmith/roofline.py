"""What a GPU can do at best, and the least time it allows a convolution.

    floor = max(bytes moved / copy rate, operations / rate of the unit that does them)

Both rates are measured ones where they are known (a large device-to-device copy, a large matrix
product), so that a floor can nearly be reached; docs/benchmark.md says how they are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from convsmith.spec import ConvSpec, Precision

# A group of fewer channels than this fills no tensor-core instruction: ordinary units do the work.
TENSOR_CORE_CHANNELS = 8

# float32 accuracy on tensor cores takes three products of half-precision parts.
PRODUCTS_OF_FLOAT32 = 3


@dataclass(frozen=True)
class Ceilings:
    """The rates of one GPU, in the units and by the names that a benchmark record uses.

    Args:
        copy_TBps: device-to-device copy, bytes read plus bytes written, in 10**12 bytes a second.
        fp32_TFLOPs, tf32_TFLOPs, fp16_TFLOPs, bf16_TFLOPs: a large matrix product of that type, in
            10**12 operations a second, a multiplication and an addition counting two.
    """

    copy_TBps: float
    fp32_TFLOPs: float
    tf32_TFLOPs: float
    fp16_TFLOPs: float
    bf16_TFLOPs: float


# Measured by `make gpu-record`'s method, by the name that CUDA gives the GPU.
MEASURED = {
    "NVIDIA H200": Ceilings(
        copy_TBps=4.248,
        fp32_TFLOPs=50.94,
        tf32_TFLOPs=410.3,
        fp16_TFLOPs=760.2,
        bf16_TFLOPs=787.1,
    ),
    "NVIDIA H100 80GB HBM3": Ceilings(
        copy_TBps=3.018,
        fp32_TFLOPs=51.8,
        tf32_TFLOPs=410.0,
        fp16_TFLOPs=760.0,
        bf16_TFLOPs=785.0,
    ),
}

# Operations per clock and multiprocessor by compute capability: float32 units, and dense fp16
# products on tensor cores. TF32 runs at half the fp16 rate, from 8.0 on. From NVIDIA's architecture
# white papers; a capability that is not listed counts as the highest one below it.
_RATES = {
    (7, 0): (128, 1024),
    (7, 5): (128, 1024),
    (8, 0): (128, 2048),
    (8, 6): (256, 1024),
    (8, 9): (256, 1024),
    (9, 0): (256, 4096),
    (10, 0): (256, 8192),
    (12, 0): (256, 1024),
}
_FIRST_WITH_TF32 = (8, 0)

# What an H200 reaches in practice of its peak: 0.86 of memory, 0.71 to 0.77 of arithmetic.
_SHARE_OF_MEMORY = 0.87
_SHARE_OF_ARITHMETIC = 0.75


def estimate(
    capability: tuple[int, int],
    multiprocessors: int,
    clock_hz: float | None = None,
    memory_bytes_per_second: float | None = None,
) -> Ceilings:
    """The ceilings to expect of a GPU that has not been measured.

    Args:
        capability: compute capability, (major, minor).
        multiprocessors: how many there are.
        clock_hz: their clock; 1.7 GHz where unknown.
        memory_bytes_per_second: peak bandwidth; where unknown, what is usual: 2 TB/s for the
            largest GPU of a generation (minor capability 0), 0.6 TB/s for others.
    """
    if memory_bytes_per_second is None:
        memory_bytes_per_second = 2e12 if capability[1] == 0 else 0.6e12
    listed = [known for known in _RATES if known <= capability]
    scalar, tensor = _RATES[max(listed, default=min(_RATES))]
    per_operation = _SHARE_OF_ARITHMETIC * multiprocessors * (clock_hz or 1.7e9) / 1e12
    fp32, fp16 = per_operation * scalar, per_operation * tensor
    return Ceilings(
        copy_TBps=_SHARE_OF_MEMORY * memory_bytes_per_second / 1e12,
        fp32_TFLOPs=fp32,
        tf32_TFLOPs=fp16 / 2 if capability >= _FIRST_WITH_TF32 else fp32,
        fp16_TFLOPs=fp16,
        bf16_TFLOPs=fp16 if capability >= _FIRST_WITH_TF32 else fp32,
    )


@cache
def ceilings_of(device: torch.device) -> Ceilings:
    """The ceilings of a CUDA device: measured ones for a known GPU, estimates for others.

    Args:
        device: with its index, as tensors have it.
    """
    properties = torch.cuda.get_device_properties(device)
    if properties.name in MEASURED:
        return MEASURED[properties.name]
    # torch 2.8 does not tell clocks (in kHz) and the width of the memory bus (in bits).
    clock = getattr(properties, "clock_rate", 0) * 1e3
    memory_clock = getattr(properties, "memory_clock_rate", 0) * 1e3
    bus_bytes = getattr(properties, "memory_bus_width", 0) / 8
    return estimate(
        (properties.major, properties.minor),
        properties.multi_processor_count,
        clock or None,
        2 * memory_clock * bus_bytes or None,  # two transfers a clock
    )


def operation_rate(spec: ConvSpec, ceilings: Ceilings) -> float:
    """Operations a second, in 10**12, of the unit that does the work of ``spec``.

    Depthwise convolutions and narrow groups run on the float32 units whatever their precision. For
    float64 the float32 rate stands in: no GPU's float64 rate is higher.
    """
    narrow = spec.groups > 1 and spec.in_channels // spec.groups < TENSOR_CORE_CHANNELS
    if narrow or spec.precision is Precision.FLOAT64:
        return ceilings.fp32_TFLOPs
    return {
        Precision.TF32: ceilings.tf32_TFLOPs,
        # Whichever is quicker: a GPU without fast fp16 products has only the ordinary units.
        Precision.FLOAT32: max(
            ceilings.fp16_TFLOPs / PRODUCTS_OF_FLOAT32,
            ceilings.fp32_TFLOPs,
        ),
        Precision.FLOAT16: ceilings.fp16_TFLOPs,
        Precision.BFLOAT16: ceilings.bf16_TFLOPs,
    }[spec.precision]


def floor_ms(spec: ConvSpec, ceilings: Ceilings) -> float:
    """The least time, in milliseconds, that a GPU with these ceilings needs for ``spec``."""
    seconds = max(
        spec.bytes_moved / (ceilings.copy_TBps * 1e12),
        spec.operations / (operation_rate(spec, ceilings) * 1e12),
    )
    return seconds * 1e3
