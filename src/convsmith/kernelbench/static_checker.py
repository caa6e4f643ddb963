"""What KernelBench's static checker refuses in a solution, so that an export can say it beforehand.

The checker reads text, not code. Of each line it drops what follows ``#`` or ``//``, and refuses
the file if one of these patterns is left anywhere, in a docstring just as well, or if there is no
CUDA kernel. Patterns of which it only warns are not here: PyTorch's layers and functions in the
solution, streams, and conversions from float32 to float16.
"""

from __future__ import annotations

import re

_REFUSED = {
    "an exception handler": r"\btry\s*:|\bexcept\s*:|\bexcept\s+\w+",
    "the word 'pass'": r"\bpass\b",
    "a thread or a process": (
        r"\bthreading\.Thread\s*\(|import\s+threading|from\s+threading\s+import"
        r"|multiprocessing\.(Process|Pool|Manager|Queue|Pipe)|import\s+multiprocessing"
        r"|concurrent\.futures|ThreadPoolExecutor|ProcessPoolExecutor"
    ),
    "a subclass of Tensor": (
        r"_make_subclass|class\s+\w+.*\((torch\.)?Tensor\)|torch\.Tensor\.__new__"
    ),
    "a timing function that is replaced": (
        r"torch\.cuda\.Event(\.record|\.elapsed_time)?\s*=|torch\.cuda\.synchronize\s*="
        r"|time\.(perf_counter|time)\s*="
    ),
}
_REQUIRED = {
    "no __global__ function": r"__global__",
    "no load_inline": r"load_inline|cpp_extension",
    "no CUDA thread": (
        r"\b(threadIdx|blockIdx|blockDim|gridDim)\.|__syncthreads\s*\(|__(shared|device)__\s"
        r"|atomic(Add|Max|Min)\s*\("
    ),
}


def refused(text: str) -> list[str]:
    """What of ``text``, all or part of a solution, is refused wherever it stands; with its line."""
    code = _without_comments(text)
    return [
        f"{what} in line {code.count(chr(10), 0, match.start()) + 1}"
        for what, pattern in _REFUSED.items()
        if (match := re.search(pattern, code))
    ]


def missing(text: str) -> list[str]:
    """What a whole solution has to have and ``text`` lacks."""
    code = _without_comments(text)
    return [what for what, pattern in _REQUIRED.items() if not re.search(pattern, code)]


def _without_comments(text: str) -> str:
    return "\n".join(re.split("#|//", line, maxsplit=1)[0] for line in text.split("\n"))
