"""A problem's code as an exported file carries it: the same code, in words that KernelBench takes.

Nothing that the code does is changed. What is rewritten, because of KernelBench's static checker
(see ``static_checker``) and because the code stands in the middle of a file, which KernelBench
moreover puts lines of its own before:

- a docstring with refused words, and the module's, becomes a comment,
- the statement ``pass`` becomes ``...``,
- ``from __future__`` goes; where it made strings of annotations they are written as strings.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from convsmith.kernelbench.static_checker import refused

_Documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def carried(source: str) -> str:
    """``source``, a whole Python file, rewritten as this module says."""
    tree = ast.parse(source)
    text = _Text(source)
    edits = [*_pass_statements(tree, text), *_docstrings(tree, text), *_future(tree, text)]
    return text.edited(edits).strip("\n")


class _Edit(NamedTuple):
    """Bytes from ``start`` up to ``end`` that ``replacement`` takes the place of."""

    start: int
    end: int
    replacement: str


class _Text:
    """A source by the positions that its syntax tree has: lines, and bytes of UTF-8 in them."""

    def __init__(self, source: str) -> None:
        self.data = source.encode()
        lines = self.data.split(b"\n")
        self.starts = [0, *accumulate(len(line) + 1 for line in lines)]

    def span(self, node: ast.stmt | ast.expr) -> tuple[int, int]:
        """Where a node's text starts and ends."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: ast.stmt) -> str:
        """A node's text."""
        start, end = self.span(node)
        return self.data[start:end].decode()

    def indent(self, node: ast.stmt) -> str | None:
        """The blanks before a statement that has its lines for itself, or None."""
        start, end = self.span(node)
        assert node.end_lineno is not None
        before = self.data[self.starts[node.lineno - 1] : start].decode()
        after = self.data[end : self.starts[node.end_lineno]]
        return before if not before.strip() and not after.strip() else None

    def edited(self, edits: list[_Edit]) -> str:
        """The source with the edits made, none of which may overlap."""
        data = self.data
        for start, end, replacement in sorted(edits, reverse=True):
            data = data[:start] + replacement.encode() + data[end:]
        return data.decode()


def _pass_statements(tree: ast.Module, text: _Text) -> Iterator[_Edit]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Pass):
            yield _Edit(*text.span(node), "...")


def _docstrings(tree: ast.Module, text: _Text) -> Iterator[_Edit]:
    for node in ast.walk(tree):
        if not isinstance(node, _Documented) or (docstring := ast.get_docstring(node)) is None:
            continue
        statement = node.body[0]
        if node is not tree and not refused(text.of(statement)):
            continue
        indent = text.indent(statement)
        if indent is None:
            yield _Edit(*text.span(statement), "...")
            continue
        comment = [f"# {line}".rstrip() for line in docstring.splitlines()]
        if len(node.body) == 1 and node is not tree:
            comment.append("...")
        yield _Edit(*text.span(statement), f"\n{indent}".join(comment))


def _future(tree: ast.Module, text: _Text) -> Iterator[_Edit]:
    quoted = False
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            quoted = quoted or any(name.name == "annotations" for name in statement.names)
            start, end = text.span(statement)
            has_line = text.indent(statement) is not None
            yield _Edit(start, end + 1, "") if has_line else _Edit(start, end, "...")
    if quoted:
        for annotation in _annotations(tree):
            yield _Edit(*text.span(annotation), _quoted(ast.unparse(annotation)))


def _annotations(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns is not None:
            yield node.returns


def _quoted(text: str) -> str:
    return repr(text) if {'"', "\\"} & set(text) else f'"{text}"'
