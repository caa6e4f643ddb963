"""Write a problem's solution: one file with its own kernels, which needs PyTorch and nothing else.

    export(Path("problem.py"), Path("model_new.py"))

The file is model_new.py.in with the problem's own code, and each kernel family's CUDA source and
planning functions put in.
"""

from __future__ import annotations

import ast
import os
import re
import symtable
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import convsmith
from convsmith import spec
from convsmith.errors import ProblemError
from convsmith.kernelbench import problem as files
from convsmith.kernelbench import static_checker
from convsmith.kernelbench.carry import carried
from convsmith.kernelbench.definitions import definitions_of, family_function
from convsmith.kernelbench.supervise import Limits, default_memory_limit, supervise
from convsmith.kernels.families import FAMILIES
from convsmith.kernels.source import render

# What an exported file has of spec.py, for its own code and for the families'.
_TYPES = ("Pair", "Shape", "Direction", "Precision")
_FUNCTIONS = (
    "_PRECISION_OF_DTYPE",
    "_read_precision",
    "_TF32_ALLOWED",
    "precision_of",
    "float32_switch",
    "output_extent",
    "strides_like_channels_last",
    "follows_channels_last",
)

REHEARSAL_SECONDS = 120.0  # to construct Model and ModelNew


def export(problem: Path, output: Path, *, force: bool = False) -> list[str]:
    """Write a solution of ``problem`` whose ``ModelNew`` runs on ConvSmith's kernels.

    Before it is put in its place, the file is loaded in a child process, where its ModelNew is
    compared with the problem's Model; neither runs, and nothing is compiled.

    Args:
        problem: a file that defines Model, get_inputs and get_init_inputs.
        output: the file to write, whole or not at all.
        force: overwrite a file that is there.

    Returns:
        What a reader should know of the file besides, a sentence each.

    Raises:
        ProblemError: the problem file cannot be used, its Model has no nn.Conv2d, or ``output``
            cannot be written.
    """
    text = exported_text(problem)
    if output.exists():
        if output.samefile(problem):
            raise ProblemError(f"{output}: that is the problem file; write to another one")
        if not force:
            raise ProblemError(f"{output}: exists already; write to another file, or use --force")
    unfinished = output.with_name(f".{output.stem}.{os.getpid()}.py")
    try:
        unfinished.write_text(text, encoding="utf-8")
        _rehearse(problem, unfinished)
        unfinished.replace(output)
    except OSError as error:
        raise ProblemError(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    refusals = static_checker.refused(text)
    return [f"KernelBench's static checker refuses {output}: {what}" for what in refusals]


def exported_text(problem: Path) -> str:
    """The text of a solution of ``problem``, of which nothing is run.

    Raises:
        ProblemError: the file cannot be read or does not parse.
    """
    files.parse(problem)
    own_code = carried(files.read(problem))
    template = Template(resources.files(__package__).joinpath("model_new.py.in").read_text())
    code = template.safe_substitute(
        dtypes=", ".join(map(str, spec.supported_dtypes())),
        cuda="\n\n".join(map(_cuda_constant, FAMILIES)),
        planning_types=definitions_of(spec, _TYPES),
        planning_functions=carried(definitions_of(spec, _FUNCTIONS)),
        planning_families=carried("\n\n\n".join(map(family_function, FAMILIES.values()))),
        families="\n".join(f"    {name}_family()," for name in FAMILIES),
    )
    code = _with_names_of_its_own(code, own_code)
    return Template(code).substitute(
        marker=f"{files.EXPORT_MARKER} {convsmith.__version__}.",
        problem_name=problem.name,
        problem=own_code,
        binding=resources.files("convsmith.jit").joinpath("binding.cpp").read_text(),
        **{f"{family}_cuda": _cuda_source(family) for family in FAMILIES},
    )


def _cuda_constant(family: str) -> str:
    """The definition of a family's CUDA source, which is put in when all names are settled."""
    return f'{family.upper()}_CUDA = r"""\n${family}_cuda"""'


def _cuda_source(family: str) -> str:
    """A family's CUDA text, with TEMPLATE_ARGUMENTS where a specialisation has its own."""
    text = render(family, "exported", ("TEMPLATE_ARGUMENTS",)).cuda
    return text.partition("\n")[2]  # the first line speaks of this package's files


def _with_names_of_its_own(code: str, problem: str) -> str:
    """``code`` with an underscore after each of its names that ``problem`` uses otherwise."""
    ours, theirs = _bound(code), _bound(problem)
    taken = [name for name in ours if name in theirs and not ours[name] == theirs[name] != ""]
    if not taken:
        return code
    suffix = "_"
    while any(name + suffix in theirs for name in taken):
        suffix += "_"
    pattern = re.compile(rf"(as )?(?<![.\w$])({'|'.join(taken)})\b")

    def renamed(line: str) -> str:
        if not line.startswith(("import ", "from ")):
            return pattern.sub(rf"\1\2{suffix}", line)
        return pattern.sub(lambda found: f"{found[1] or f'{found[2]} as '}{found[2]}{suffix}", line)

    return "\n".join(map(renamed, code.split("\n")))


def _bound(code: str) -> dict[str, str]:
    """The names that a module binds, and what each one that is imported stands for."""
    code = code.replace("$", "")  # the placeholders of a template
    table = symtable.symtable(code, "module", "exec")
    bound = {
        symbol.get_name(): ""
        for symbol in table.get_symbols()
        if symbol.is_assigned() or symbol.is_imported()
    }
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                bound[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return bound


def _rehearse(problem: Path, solution: Path) -> None:
    """Load both files in a child process and compare what they define.

    Raises:
        ProblemError: what is wrong with them.
    """
    answer: dict[str, Any] = {}
    seconds = REHEARSAL_SECONDS
    limits = Limits(step=seconds, total=seconds, memory=default_memory_limit())
    arguments = [str(problem.resolve()), str(solution.resolve())]
    ending = supervise("convsmith.kernelbench.rehearsal", arguments, limits, answer.update)
    if "error" in answer:
        raise ProblemError(answer["error"])
    if not ending.finished:
        raise ProblemError(f"{problem}: constructing Model: {ending.words}")
