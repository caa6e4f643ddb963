"""Definitions of the library's own modules, as the text that an exported file has of them.

They are taken from where they stand, so that there is one of each.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Collection
from importlib import resources
from string import Template
from types import ModuleType

from convsmith import kernels
from convsmith.kernels.families import FAMILIES
from convsmith.kernels.family import Family

# What an exported file calls a family for; whatever those need of its module comes with them.
_ENTRY_POINTS = (
    "LEAST_CAPABILITY",
    "MOST_CAPABILITY",
    "obstacle",
    "configure",
    "template_arguments",
    "problem",
)


def definitions_of(module: ModuleType, names: Collection[str]) -> str:
    """The named definitions of a module, in the order in which they stand there."""
    return _text(inspect.getsource(module), names, gap="\n\n\n")


def family_function(family: Family) -> str:
    """A function that returns the exported file's ``Family``, with the planning code inside it.

    The families' functions have the same names. Inside a function they keep them.
    """
    assert isinstance(family, ModuleType)
    source = "\n".join(map(inspect.getsource, _modules_of(family)))
    template = Template(resources.files(__package__).joinpath("family.py.in").read_text())
    summary, _, _ = inspect.cleandoc(family.__doc__ or "").partition("\n\n")
    return template.substitute(
        name=family.NAME,
        NAME=family.NAME.upper(),
        summary=textwrap.indent(summary, "    ").strip(),
        definitions=textwrap.indent(_text(source, _needed(source), gap="\n\n"), "    "),
    ).rstrip("\n")


def _modules_of(family: ModuleType) -> list[ModuleType]:
    """The modules that make up a family's host side, each after those that it imports from."""
    found: list[ModuleType] = []
    for node in ast.parse(inspect.getsource(family)).body:
        if isinstance(node, ast.ImportFrom) and node.module and _is_part(node.module):
            found += [
                module
                for module in _modules_of(importlib.import_module(node.module))
                if module not in found
            ]
    return [*found, family]


def _is_part(module: str) -> bool:
    """Whether a module is a part of some family: kernels/ has them as <family>_<part>.py."""
    package, _, name = module.rpartition(".")
    return package == kernels.__name__ and name.startswith(tuple(f"{one}_" for one in FAMILIES))


def _needed(source: str) -> set[str]:
    """The names of a family's definitions that its entry points reach, and theirs."""
    defined = {name: node for node in ast.parse(source).body if (name := _name_of(node))}
    needed: set[str] = set()
    unseen = list(_ENTRY_POINTS)
    while unseen:
        name = unseen.pop()
        if name in defined and name not in needed:
            needed.add(name)
            unseen += [part.id for part in ast.walk(defined[name]) if isinstance(part, ast.Name)]
    return needed


def _text(source: str, wanted: Collection[str], gap: str) -> str:
    """The wanted definitions of a source with the comments above them, ``gap`` between them."""
    text, previous = "", None
    lines = source.split("\n")
    for node in ast.parse(source).body:
        if _name_of(node) not in wanted:
            continue
        decorators: list[ast.expr] = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(part.lineno for part in decorators)]) - 1
        while lines[first - 1].startswith("#"):
            first -= 1
        if previous is not None:
            values = isinstance(node, ast.Assign) and isinstance(previous, ast.Assign)
            text += "\n" if values else gap
        text += "\n".join(lines[first : node.end_lineno])
        previous = node
    return text


def _name_of(node: ast.stmt) -> str | None:
    """The name that a statement of a module defines, if it defines one."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return getattr(node, "name", None)
