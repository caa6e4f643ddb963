"""`export` writes a right file or none, and says what is wrong with a problem."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from exported import EXAMPLES, PROBLEMS, load

from convsmith.errors import ProblemError
from convsmith.kernelbench import export as export_module
from convsmith.kernelbench.export import export, exported_text
from convsmith.kernelbench.rehearsal import rehearse

LAYER = next(problem for problem in PROBLEMS if problem.stem == "layer")
FUNCTIONS = "def get_inputs(): return []\ndef get_init_inputs(): return []\n"
NO_CONVOLUTION = "import torch\nclass Model(torch.nn.Linear):\n    pass\n" + FUNCTIONS.replace(
    "get_init_inputs(): return []", "get_init_inputs(): return [2, 3]"
)


def only_files(folder: Path, *names: str) -> None:
    """Nothing is left of what was not finished."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_writes_the_file_and_overwrites_it_only_by_force(tmp_path: Path) -> None:
    output = tmp_path / "model_new.py"
    assert export(LAYER, output) == []
    only_files(tmp_path, "model_new.py")
    assert output.read_text() == exported_text(LAYER)
    mask = os.umask(0o777)
    os.umask(mask)
    assert output.stat().st_mode & 0o777 == 0o666 & ~mask

    output.write_text("precious")
    with pytest.raises(ProblemError, match=r"exists already; .* use --force"):
        export(LAYER, output)
    assert output.read_text() == "precious"
    handler = next(problem for problem in PROBLEMS if problem.stem == "handler")
    (note,) = export(handler, output, force=True)
    assert note.startswith(f"KernelBench's static checker refuses {output}: an exception handler")
    assert output.read_text() == exported_text(handler)
    only_files(tmp_path, "model_new.py")


def test_never_overwrites_the_problem(tmp_path: Path) -> None:
    problem = tmp_path / "problem.py"
    problem.write_bytes(LAYER.read_bytes())
    (tmp_path / "link.py").symlink_to(problem)
    for output in (problem, tmp_path / "link.py"):
        with pytest.raises(ProblemError, match="that is the problem file"):
            export(problem, output, force=True)
    assert problem.read_bytes() == LAYER.read_bytes()


def test_says_where_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProblemError, match=r"cannot be written: No such file or directory"):
        export(LAYER, tmp_path / "missing" / "model_new.py")
    monkeypatch.setattr(export_module, "_rehearse", lambda problem, solution: None)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ProblemError, match=r"cannot be written: Is a directory"):
        export(LAYER, tmp_path / "folder", force=True)
    only_files(tmp_path, "folder")


def test_a_problem_without_nn_conv2d_is_refused_and_nothing_written(tmp_path: Path) -> None:
    problem = tmp_path / "problem.py"
    problem.write_text(NO_CONVOLUTION)
    with pytest.raises(ProblemError, match=r"Model has no nn\.Conv2d"):
        export(problem, tmp_path / "model_new.py")
    only_files(tmp_path, "problem.py")


def test_a_problem_that_never_ends_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = tmp_path / "problem.py"
    problem.write_text("import time\nwhile True:\n    time.sleep(1)\n")
    monkeypatch.setattr(export_module, "REHEARSAL_SECONDS", 4.0)
    with pytest.raises(ProblemError, match="4 s"):
        export(problem, tmp_path / "model_new.py")
    only_files(tmp_path, "problem.py")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "no such file"),
        ("def f(:", "does not parse"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_python_is_refused_unrun(
    source: str | bytes | None, words: str, tmp_path: Path
) -> None:
    problem = tmp_path / "problem.py"
    if source is not None:
        problem.write_bytes(source.encode() if isinstance(source, str) else source)
    with pytest.raises(ProblemError, match=words):
        export(problem, tmp_path / "model_new.py")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (FUNCTIONS, "defines no Model"),
        ("import torch\nModel = torch.nn.Conv2d", "defines no get_inputs"),
        ("1 / 0", "raised ZeroDivisionError"),
        ("raise SystemExit(3)", r"SystemExit|sys\.exit"),
        ("import torch\nModel = torch.nn.Conv2d\n" + FUNCTIONS, r"Conv2d\(\[\]\) raised TypeError"),
        (NO_CONVOLUTION, "Model has no nn.Conv2d"),
    ],
)
def test_rehearsing_says_what_is_wrong_with_a_problem(
    source: str, words: str, tmp_path: Path
) -> None:
    problem = tmp_path / "problem.py"
    problem.write_text(source)
    with pytest.raises(ProblemError, match=words):
        rehearse(problem, problem)


@pytest.mark.parametrize(
    ("kept", "changed"),
    [
        (
            "super().__init__(*args, **kwargs)\n",
            "super().__init__(*args, **kwargs); del self.head\n",
        ),
        ("    @functools.wraps(Model.__init__)\n", ""),
    ],
)
def test_rehearsing_finds_a_model_new_that_differs(kept: str, changed: str, tmp_path: Path) -> None:
    problem = next(problem for problem in PROBLEMS if problem.stem == "residual")
    solution = tmp_path / "changed.py"
    solution.write_text(exported_text(problem).replace(kept, changed))
    with pytest.raises(ProblemError, match="would differ from Model"):
        rehearse(problem, solution)


def test_a_constructor_that_computes_with_its_weights_is_no_obstacle(tmp_path: Path) -> None:
    problem = tmp_path / "problem.py"
    source = LAYER.read_text()
    problem.write_text(
        source.replace(
            "**kwargs)\n\n", "**kwargs)\n        assert self.conv.weight.sum().item()\n\n"
        )
    )
    assert problem.read_text() != source
    solution = tmp_path / "solution.py"
    solution.write_text(exported_text(problem))
    rehearse(problem, solution)


def test_takes_other_names_where_the_problem_has_its_own(tmp_path: Path) -> None:
    """A problem may use every name that an exported file uses, and both keep their meaning."""
    ours = export_module._bound(exported_text(LAYER))
    kept = {"torch", "nn", "Model", "ModelNew", "get_inputs", "get_init_inputs"}
    names = sorted(set(ours) - kept)
    assert {"Conv2d", "F", "math", "Path", "launch", "direct_family", "DIRECT_CUDA"} <= set(names)
    mine = "".join(f"{name} = {name!r}\n" for name in names)
    checks = "".join(f"        assert {name} == {name!r}\n" for name in names)
    source = LAYER.read_text()
    source = source.replace("class Model", f"{mine}\n\nclass Model", 1)
    source = source.replace("        return self.conv(x)", checks + "        return self.conv(x)")
    problem = tmp_path / "problem.py"
    problem.write_text(source)
    module = load(problem, tmp_path)
    model = module.ModelNew(4, 6, 3)
    assert type(model.conv).__name__ == "Conv2d_"
    assert model(*module.get_inputs()).shape == (2, 6, 7, 6)


CHILD = """
import inspect, json, sys
sys.modules["convsmith"] = None  # importing it is an error
import torch

for path in sys.argv[1:]:
    space = {}
    # As KernelBench does: lines of its own before, and no module around it.
    exec("import os\\nos.environ['X'] = ''\\n" + open(path).read(), space)
    Model, ModelNew, arguments = space["Model"], space["ModelNew"], space["get_init_inputs"]()
    assert inspect.signature(Model) == inspect.signature(ModelNew)
    assert inspect.signature(Model.__init__) == inspect.signature(ModelNew.__init__)
    assert inspect.signature(Model.forward) == inspect.signature(ModelNew.forward)
    models, states = [], []
    for cls in (Model, ModelNew):
        torch.manual_seed(0)
        models.append(cls(*arguments).eval())
        states.append(torch.random.get_rng_state())
    assert torch.equal(*states), "draws other random numbers"
    model, new = models
    assert list(model.state_dict()) == list(new.state_dict())
    assert repr(model).partition("(")[2] == repr(new).partition("(")[2]
    old = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    own = [m for m in new.modules() if isinstance(m, torch.nn.Conv2d)]
    assert own and len(own) == len(old)
    assert all(isinstance(m, (space["Conv2d"], space["LazyConv2d"])) for m in own)
    x = torch.randn(2, old[0].in_channels or 4, 24, 24)
    results = []
    for module in models:
        torch.manual_seed(1)  # for lazy layers
        results.append(module(x))
    assert torch.equal(*results), path
    for name, value in model.state_dict().items():
        assert torch.equal(value, new.state_dict()[name]), name
    assert not torch.cuda.is_initialized()
assert not any(name.startswith("torch.utils.cpp_extension") for name in sys.modules)
print("done")
"""


def test_runs_without_convsmith_on_a_cpu(tmp_path: Path) -> None:
    """As PyTorch, equal to the bit: parameters, random numbers, results; nothing is compiled."""
    files = []
    for problem in (*EXAMPLES, *PROBLEMS):
        file = tmp_path / problem.name
        file.write_text(exported_text(problem))
        files.append(str(file))
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, *files], capture_output=True, text=True, check=False
    )
    assert done.stdout == "done\n", done.stderr
