"""An exported file has every kernel family, and plans with them as the library does."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from exported import (
    PROBLEMS,
    assert_same_step,
    convolutions,
    exported_spec,
    load,
    planned,
    simulating,
    twins,
)

from convsmith.kernelbench.problem import load_module
from convsmith.kernels import source
from convsmith.kernels.families import FAMILIES

LAYER = next(problem for problem in PROBLEMS if problem.stem == "layer")


def test_has_every_family_in_the_librarys_order(tmp_path: Path) -> None:
    module = load(LAYER, tmp_path)
    assert [family.name for family in module.FAMILIES] == list(FAMILIES)
    for family in module.FAMILIES:
        assert family.least_capability == FAMILIES[family.name].LEAST_CAPABILITY


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_plans_as_in_the_library(name: str, tmp_path: Path) -> None:
    """The same refusals, kernels, problems and workspaces."""
    module, family, computed = load(LAYER, tmp_path), FAMILIES[name], 0
    own = next(family for family in module.FAMILIES if family.name == name)
    for spec in convolutions().values():
        twin = exported_spec(module, spec)
        obstacle = family.obstacle(spec)
        assert own.obstacle(twin) == obstacle
        if obstacle is not None:
            continue
        ours, theirs = own.configure(twin, 132), family.configure(spec, 132)
        assert own.problem(twin, ours) == family.problem(spec, theirs)
        assert ours.workspace_bytes == theirs.workspace_bytes
        arguments = ", ".join(own.template_arguments(twin, ours))
        text = own.cuda.removeprefix("\n").replace("TEMPLATE_ARGUMENTS", arguments)
        assert text == family.source(spec, theirs).cuda.partition("\n")[2]
        computed += 1
    assert computed


@pytest.fixture
def twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A family before all others: direct by another name, for groups only and from 8.0 on."""
    kernels = tmp_path / "kernels"
    shutil.copytree(str(source._FOLDER), kernels)
    for name in ("direct.cuh", "direct_view.cuh", "direct.py"):
        text = re.sub(r"\bdirect(?=\b|_view)", "twin", (kernels / name).read_text())
        text = text.replace("LEAST_CAPABILITY = (7, 0)", "LEAST_CAPABILITY = (8, 0)")
        text = text.replace(
            "\n    return None\n", '\n    return None if spec.groups > 1 else "it has no groups"\n'
        )
        (kernels / name.replace("direct", "twin")).write_text(text)
    monkeypatch.setattr(source, "_FOLDER", kernels)
    twin = load_module(kernels / "twin.py", "twin")
    others = dict(FAMILIES)
    FAMILIES.clear()
    FAMILIES.update({"twin": twin, **others})
    yield twin
    FAMILIES.clear()
    FAMILIES.update(others)


@pytest.mark.usefixtures("twin")
def test_the_first_family_that_can_computes_a_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    module = load(LAYER, tmp_path)
    for groups, families in ((1, {"implicit_gemm"}), (2, {"twin"})):
        with simulating(module, tmp_path, monkeypatch) as simulation:
            assert_same_step(*twins(module, 4, 6, 3, groups=groups), torch.randn(2, 4, 5, 6))
        assert simulation.families == families
        assert set(simulation.launches) == {"forward", "grad_input", "grad_weight"}


@pytest.mark.usefixtures("twin")
def test_a_gpu_too_old_for_a_family_takes_the_next_one(tmp_path: Path) -> None:
    module = load(LAYER, tmp_path)
    depthwise = convolutions()["depthwise-forward-float32"]
    assert planned(module, depthwise, (8, 0))[0].name == "twin"
    assert planned(module, depthwise, (7, 5))[0].name in FAMILIES.keys() - {"twin"}
    with pytest.raises(RuntimeError, match=r"compute capability 6\.1; use Model there"):
        planned(module, depthwise, (6, 1))
