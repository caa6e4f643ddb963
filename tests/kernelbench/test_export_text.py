"""What an exported file says: only PyTorch's imports, words that KernelBench takes, its problem."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from exported import EXAMPLES, PROBLEMS
from hypothesis import given
from hypothesis import strategies as st

from convsmith.kernelbench import static_checker
from convsmith.kernelbench.carry import carried
from convsmith.kernelbench.export import exported_text
from convsmith.kernelbench.problem import EXPORT_MARKER, is_exported

every_problem = pytest.mark.parametrize("problem", [*EXAMPLES, *PROBLEMS], ids=lambda p: p.stem)


def imported(code: str) -> set[str]:
    """The top-level packages that some code imports."""
    packages = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add((node.module or ".").partition(".")[0])
    return packages


@every_problem
def test_imports_torch_and_the_standard_library(problem: Path) -> None:
    packages = imported(exported_text(problem)) - imported(problem.read_text())
    assert packages <= {"torch", *sys.stdlib_module_names}


@every_problem
def test_has_the_marker_in_its_first_line(problem: Path, tmp_path: Path) -> None:
    file = tmp_path / "model_new.py"
    file.write_text(exported_text(problem))
    assert is_exported(file)
    assert file.read_text().startswith(EXPORT_MARKER)


@pytest.mark.parametrize(
    "problem", [p for p in (*EXAMPLES, *PROBLEMS) if p.stem != "handler"], ids=lambda p: p.stem
)
def test_kernelbench_takes_it(problem: Path) -> None:
    text = exported_text(problem)
    assert static_checker.refused(text) == []
    assert static_checker.missing(text) == []


def test_the_problems_that_kernelbench_itself_would_refuse_say_so() -> None:
    handler = next(problem for problem in PROBLEMS if problem.stem == "handler")
    (refusal,) = static_checker.refused(exported_text(handler))
    assert refusal.startswith("an exception handler in line ")


@pytest.mark.parametrize(
    "command",
    [["format", "--check"], ["check", "--isolated", "--select=F821,E501"]],
    ids=" ".join,
)
@pytest.mark.parametrize("problem", EXAMPLES, ids=lambda p: p.stem)
def test_is_formatted_as_this_project_is_and_defines_what_it_names(
    problem: Path, command: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--line-length=100", "-"],
        input=exported_text(problem),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "refusals"),
    [
        ("x = 1  # try: pass", []),
        ("bypass, passed, trying = 1, 2, 3 // 1; pass_ = 4", []),
        ('"""A forward pass."""', ["the word 'pass' in line 1"]),
        ("def f():\n    pass", ["the word 'pass' in line 2"]),
        ("try :\n    f()\nfinally:\n    g()", ["an exception handler in line 1"]),
        ("'all except\nnone'", ["an exception handler in line 1"]),
        ("\nimport threading", ["a thread or a process in line 2"]),
        ("from concurrent.futures import wait", ["a thread or a process in line 1"]),
        ("class Lazy(torch.Tensor):", ["a subclass of Tensor in line 1"]),
        ("torch.cuda.Event.record = f", ["a timing function that is replaced in line 1"]),
        ("y = torch.cuda.Event.record(x)", []),
    ],
)
def test_rules_of_the_static_checker(text: str, refusals: list[str]) -> None:
    assert static_checker.refused(text) == refusals


def test_a_solution_has_to_have_a_kernel() -> None:
    assert len(static_checker.missing("# __global__ load_inline threadIdx.x")) == 3
    kernel = "load_inline('__global__ void f() { threadIdx.x; }')"
    assert static_checker.missing(kernel) == []


# What the checker warns of, where it is not the problem's own.
WARNINGS = {
    "a layer": r"torch\.nn\.(?!(Module|[pP]arameter|ParameterList|ParameterDict|init)\b)",
    "a function": r"\bnn\.functional\.\w|\bF\.(conv|linear|relu|batch_norm|dropout|\w+_pool)",
    "an operation": r"\btorch\.(conv\w*|matmul|mm|bmm|einsum|relu|clamp|linear)\b",
    "a stream": r"cuda\.Stream\s*\(|with\s+torch\.cuda\.stream|\.(wait|record)_stream\s*\(",
    "float16": r"__float2half(_rn)?\s*\(|\.half\s*\(|\.to\(\s*torch\.(float16|half)\b",
}


def test_kernelbench_warns_of_a_conversion_to_float16_and_nothing_else() -> None:
    layer = next(problem for problem in PROBLEMS if problem.stem == "layer")
    own = exported_text(layer).replace(carried(layer.read_text()), "")
    code = static_checker._without_comments(own)
    assert [name for name, pattern in WARNINGS.items() if re.search(pattern, code)] == ["float16"]


class Meaning(ast.NodeTransformer):
    """Takes docstrings and statements that do nothing out of a tree, and nothing else."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            del node.body[0]
        return super().generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        does_nothing = isinstance(node.value, ast.Constant) and node.value.value is ...
        return None if does_nothing else node


def meaning(code: str) -> str:
    return ast.dump(Meaning().visit(ast.parse(code)), indent=1)


@pytest.mark.parametrize(
    "problem", [p for p in (*EXAMPLES, *PROBLEMS) if p.stem != "residual"], ids=lambda p: p.stem
)
def test_carried_code_means_the_same(problem: Path) -> None:
    source = problem.read_text()
    assert meaning(carried(source)) == meaning(source)
    assert carried(source) in exported_text(problem)


def test_carried_annotations_are_the_strings_that_future_made_of_them() -> None:
    source = next(problem for problem in PROBLEMS if problem.stem == "residual").read_text()
    namespaces: list[dict] = [{"__name__": __name__}, {"__name__": __name__}]
    for code, namespace in zip((source, carried(source)), namespaces, strict=True):
        exec(compile(code, "residual", "exec", dont_inherit=True), namespace)
    before, after = namespaces
    for name in ("Sizes", "Block.__init__", "Block.forward", "Model.__init__", "norm_relu"):
        top, _, attribute = name.partition(".")
        annotations = [
            (getattr(space[top], attribute) if attribute else space[top]).__annotations__
            for space in namespaces
        ]
        assert annotations[0] == annotations[1]
        assert all(isinstance(value, str) for value in annotations[1].values())
    assert before["Sizes"]().stages == after["Sizes"]().stages


SNIPPETS = (
    "class A: pass",
    "class A:\n    '''pass'''\n",
    "class A: 'pass'; x = 1",
    "def f(): 'pass'",
    "def f():\n    '''é pass\n\n      ü'''; return 'pass'",
    "async def f():\n\t'''pass\r\n\ttry: x'''\n\tpass; x = 'é'; pass",
    "if True:\n    pass  # pass\nelse: pass",
    "'''é'''",
    "x = 'é'; pass",
    "def f(x, /, *y, z=1, **k): return lambda: x",
)


@given(st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=4))
def test_carried_snippets_mean_the_same(snippets: list[str]) -> None:
    source = "\n".join(snippets)
    assert meaning(carried(source)) == meaning(source)
    assert not any(isinstance(node, ast.Pass) for node in ast.walk(ast.parse(carried(source))))


@pytest.mark.parametrize(
    "source",
    [
        "from __future__ import annotations\nx: A = 1",
        "'''d'''\nfrom __future__ import annotations; x: 'A' = 1",
        "from __future__ import division\nfrom __future__ import (\n    annotations,\n)\nx: A = 1",
    ],
)
def test_future_imports_go(source: str) -> None:
    namespaces: list[dict] = [{}, {}]
    for code, namespace in zip((source, carried(source)), namespaces, strict=True):
        exec(compile(code, "snippet", "exec", dont_inherit=True), namespace)
    assert "__future__" not in carried(source)
    assert namespaces[0]["__annotations__"] == namespaces[1]["__annotations__"]
