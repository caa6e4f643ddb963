"""What the planner chooses, on a GPU that only the test sees."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from planning import H200, StubFamily, spec

import convsmith
from convsmith import planner
from convsmith.errors import KernelUnavailableError
from convsmith.kernels import direct
from convsmith.kernels.families import FAMILIES
from convsmith.spec import ConvSpec, Direction, Precision

# Two depthwise layers, in any class and direction.
kb82 = partial(spec, (16, 64, 512, 512), 64, (3, 3), groups=64)
stage = partial(spec, (128, 384, 56, 56), 384, (3, 3), padding=1, groups=384)


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize(
    ("wanted", "kernel"),
    [
        pytest.param(spec((8, 32, 512, 512), 64, (5, 9)), "implicit_gemm", id="large-filter"),
        pytest.param(
            spec((8, 32, 512, 512), 64, (5, 9), direction=Direction.GRAD_WEIGHT),
            "implicit_gemm",
            id="large-filter-grad-weight",
        ),
        pytest.param(
            spec((64, 3, 224, 224), 64, (7, 7), stride=2, padding=3), "implicit_gemm", id="stem"
        ),
        pytest.param(spec((8, 64, 512, 1024), 128, (3, 3)), "implicit_gemm", id="winograd"),
        pytest.param(spec((16, 64, 512, 512), 128, (1, 1)), "implicit_gemm", id="pointwise"),
        pytest.param(
            spec((16, 64, 512, 512), 128, (1, 1), precision=Precision.TF32),
            "torch",
            id="pointwise-tf32",
        ),
        pytest.param(kb82(), "depthwise", id="depthwise"),
        pytest.param(kb82(precision=Precision.TF32), "depthwise", id="depthwise-tf32"),
        pytest.param(
            kb82(precision=Precision.FLOAT16, dtype=torch.float16),
            "depthwise",
            id="depthwise-float16",
        ),
        pytest.param(
            kb82(precision=Precision.FLOAT64, dtype=torch.float64), "torch", id="depthwise-float64"
        ),
        pytest.param(
            stage(precision=Precision.TF32, direction=Direction.GRAD_INPUT),
            "depthwise",
            id="depthwise-grad-input",
        ),
        pytest.param(
            stage(direction=Direction.GRAD_WEIGHT), "depthwise", id="depthwise-grad-weight"
        ),
        pytest.param(
            spec((32, 128, 112, 112), 128, (3, 3), padding=1, groups=32), "depthwise", id="narrow"
        ),
        pytest.param(
            spec((8, 64, 512, 256), 128, (5, 7), precision=Precision.TF32),
            "implicit_gemm",
            id="tf32",
        ),
        pytest.param(
            spec((64, 256, 14, 14), 256, (3, 3), precision=Precision.FLOAT16, dtype=torch.float16),
            "torch",
            id="float16",
        ),
    ],
)
def test_choice(wanted: ConvSpec, kernel: str) -> None:
    """Own kernels run where an H200 was measured to run them faster, and nowhere else."""
    plan = planner.plan_for(wanted, H200)
    assert plan.kernel == kernel
    assert plan.predicted_ms is not None
    assert plan.floor_ms is not None
    able = [name for name, family in FAMILIES.items() if family.obstacle(wanted) is None]
    predicted = {candidate.kernel: candidate.predicted_ms for candidate in plan.candidates}
    assert predicted.keys() == {*able, "torch"}
    if kernel != "torch":
        torch_ms = predicted["torch"]
        assert torch_ms is not None
        assert plan.predicted_ms * planner.REQUIRED_GAIN <= torch_ms


@pytest.mark.usefixtures("capability")
def test_a_plan_tells_why() -> None:
    large = spec((8, 32, 512, 512), 64, (5, 9), direction=Direction.GRAD_WEIGHT)
    plan = planner.plan_for(large, H200)
    text = str(plan)
    kernel, cut = "runs implicit_gemm", "unit_taps=15"
    for part in ("NVIDIA H200", "floor", kernel, "torch", "blocks", "cuDNN", cut):
        assert part in text
    assert "convsmith_launch" in plan.source
    assert plan.workspace_bytes > 0
    assert planner.plan_for(spec((1, 8, 9, 9), 8, (3, 3)), H200).source == ""


@pytest.mark.usefixtures("capability")
def test_asking_by_name_decides() -> None:
    dense = spec((8, 64, 512, 1024), 128, (3, 3))
    assert planner.plan_for(dense, H200, "direct").kernel == "direct"
    assert planner.plan_for(spec((8, 64, 512, 256), 128, (5, 7)), H200, "torch").kernel == "torch"
    with pytest.raises(KernelUnavailableError, match="no kernel family 'fft'; there is "):
        planner.plan_for(dense, H200, "fft")


def test_a_gpu_too_old(capability: list[int]) -> None:
    capability[:] = [6, 1]
    wanted = spec((8, 64, 512, 256), 128, (5, 7))
    assert planner.plan_for(wanted, H200).kernel == "torch"
    with pytest.raises(KernelUnavailableError, match=r"older than compute capability \(7, 0\)"):
        planner.plan_for(wanted, H200, "direct")


def test_cpu_tensors() -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    assert convsmith.plan(x, w).kernel == "torch"
    with pytest.raises(KernelUnavailableError, match="simulator"):
        convsmith.plan(x, w, kernel="direct")
    with convsmith.use_kernel("direct"), pytest.raises(KernelUnavailableError, match="cpu"):
        convsmith.conv2d(x, w)
    with convsmith.simulator():
        plan = convsmith.plan(x, w, direction="grad_weight")
        assert plan.kernel == "direct"
        assert "the simulator" in str(plan)
    with pytest.raises(KernelUnavailableError, match="direct, torch"), convsmith.use_kernel("fft"):
        pass


def test_the_simulator_gives_way_to_a_request_for_pytorch() -> None:
    """Bitwise PyTorch's result, where our own sum of so many terms would not be."""
    x, w = torch.randn(1, 32, 9, 9), torch.randn(8, 32, 5, 5)
    with convsmith.simulator():
        ours = convsmith.conv2d(x, w)
        with convsmith.use_kernel("torch"):
            theirs = convsmith.conv2d(x, w)
        plan = convsmith.plan(x, w, kernel="torch")
    assert torch.equal(theirs, torch.conv2d(x, w))
    assert not torch.equal(ours, theirs)
    assert (plan.kernel, plan.explanation) == ("torch", "it was asked for by name")


@pytest.fixture
def families(capability: list[int], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Families of every sort in place of the library's; the compute capability of the H200."""
    stubs = [
        StubFamily("narrow", 1e-9, obstacle="it has too many channels"),
        StubFamily("modern", 1e-6, least_capability=(9, 0)),
        StubFamily("slow", 1e-3),
        StubFamily("quick", 1e-4),
        StubFamily("hopeless", 1e6),
    ]
    monkeypatch.setattr(planner, "FAMILIES", {stub.NAME: stub for stub in stubs})
    monkeypatch.setattr(planner, "KERNELS", (*(stub.NAME for stub in stubs), "torch"))
    return capability


WANTED = spec((8, 64, 512, 256), 128, (5, 7))


@pytest.mark.parametrize(
    ("of_the_gpu", "ranking"),
    [
        ([9, 0], ["modern", "quick", "slow", "torch", "hopeless"]),
        ([8, 6], ["quick", "slow", "torch", "hopeless"]),
    ],
)
def test_families_are_ranked_by_time(
    of_the_gpu: list[int], ranking: list[str], families: list[int]
) -> None:
    families[:] = of_the_gpu
    plan = planner.plan_for(WANTED, H200)
    assert [candidate.kernel for candidate in plan.candidates] == ranking
    assert plan.family is planner.FAMILIES[ranking[0]]
    assert plan.configuration == f"{ranking[0]} on 132"
    assert "faster than PyTorch" in plan.explanation
    assert f"as {ranking[0]} on 132" in str(plan)


def test_a_request_for_a_family_that_cannot_says_why(families: list[int]) -> None:
    families[:] = [8, 6]
    for kernel, why in (
        ("narrow", r"the narrow family cannot run forward .*: it has too many channels"),
        ("modern", r"the modern family cannot run .*: its GPU is older than .* \(9, 0\)"),
    ):
        with pytest.raises(KernelUnavailableError, match=why):
            planner.plan_for(WANTED, H200, kernel)
    assert planner.plan_for(WANTED, H200, "hopeless").kernel == "hopeless"


def test_where_no_family_can_pytorch_runs_and_the_plan_says_why(families: list[int]) -> None:
    families[:] = [6, 1]
    plan = planner.plan_for(WANTED, H200)
    assert plan.kernel == "torch"
    assert plan.family is None
    assert plan.explanation == (
        "its GPU is older than compute capability (7, 0); "
        "its GPU is older than compute capability (9, 0)"
    )


@pytest.mark.usefixtures("families")
def test_the_simulator_runs_the_first_family_that_can() -> None:
    """Whatever GPU it needs and however long it would take there."""
    cpu = torch.device("cpu")
    assert planner.plan_for(WANTED, cpu, simulate=True).kernel == "modern"
    assert planner.plan_for(WANTED, cpu, "hopeless", simulate=True).kernel == "hopeless"
    assert planner.plan_for(WANTED, cpu, "torch", simulate=True).kernel == "torch"
    with pytest.raises(KernelUnavailableError, match="it has too many channels"):
        planner.plan_for(WANTED, cpu, "narrow", simulate=True)


def test_the_cost_of_a_weight_gradients_parts() -> None:
    """Parts fill the GPU, and their partial sums stay within bounds."""
    for shape, filters, kernel in (
        ((16, 64, 1024, 1024), 128, (1, 1)),
        ((8, 2048, 7, 7), 2048, (3, 3)),
        ((256, 3, 224, 224), 96, (11, 11)),
    ):
        wanted = spec(shape, filters, kernel, direction=Direction.GRAD_WEIGHT)
        configuration = direct.configure(wanted, 132)
        assert configuration.blocks >= 132
        assert configuration.workspace_bytes <= 64 * 2**20
        assert configuration.terms / configuration.splits <= 2**17
