"""What a selection names, what a record needs, and how it is narrowed."""

from __future__ import annotations

from itertools import combinations

import pytest

from convsmith.bench.selections import RECORDED, Selection, narrowed
from convsmith.bench.suites import CORE, DIRECTIONS, DTYPE, SUITES, Layout
from convsmith.errors import ConvSmithError
from convsmith.spec import Direction, Precision

ALL = (list(DIRECTIONS), list(DTYPE))


def keys(selections: list[Selection]) -> list[tuple[str, ...]]:
    return [key[:4] for one in selections for key in one.row_keys()]


def test_the_default_is_the_core_suite_in_both_classes_of_float32() -> None:
    assert len(Selection().row_keys()) == len(CORE) * 3 * 2 == 174
    assert [layer.name for layer, _, _ in Selection().groups()][::3] == [one.name for one in CORE]


def test_a_selection_narrows_every_axis() -> None:
    narrow = Selection(
        layers=("kb55", "kb56"), directions=(Direction.FORWARD,), precisions=(Precision.TF32,)
    )
    assert narrow.row_keys() == [
        ("core", "kb55", "forward", "tf32", "nchw"),
        ("core", "kb56", "forward", "tf32", "nchw"),
    ]


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConvSmithError, match="no suite 'cor'; there is core, depthwise, dense"):
        Selection("cor")
    with pytest.raises(ConvSmithError, match="has no layer kb54; it has kb50, kb55"):
        Selection(layers=("kb55", "kb54"))


def test_a_record_holds_every_suite_and_some_layers_in_half_precision() -> None:
    recorded = keys(list(RECORDED))
    assert len(recorded) == len(set(recorded)) == 174 + 144 + 384 + 24
    assert set(keys([Selection()])) < set(recorded)
    assert ("depthwise", "dw_b1_c96_56_k7", "grad_weight", "float32") in recorded
    assert not any(key[0] == "depthwise" and key[3] != "float32" for key in recorded)
    assert {key[2:] for key in recorded if key[0] == "dense"} == {
        (direction.value, precision) for direction in Direction for precision in ("tf32", "float32")
    }
    half = {key[1:] for key in recorded if key[3] in ("float16", "bfloat16")}
    assert half == {
        (layer, direction.value, precision)
        for layer in ("kb55", "kb63", "kb82", "convnext_dw7")
        for direction in Direction
        for precision in ("float16", "bfloat16")
    }


def test_no_two_suites_share_the_name_of_a_layer() -> None:
    """Or `--layers` would not say which is meant."""

    def layers(suite: str) -> set[str]:
        return {layer.name for layer, _, _ in Selection(suite).groups()}

    for first, second in combinations(SUITES, 2):
        assert not layers(first) & layers(second)


def test_nothing_is_narrowed_where_nothing_is_asked_for() -> None:
    assert keys(narrowed(RECORDED, [], *ALL)) == keys(list(RECORDED))


def test_layers_of_any_suite_can_be_asked_for() -> None:
    assert keys(
        narrowed(
            RECORDED,
            ["kb82", "dw_b1_c96_56_k7", "c_b3_c5k7_113_k2"],
            [Direction.FORWARD],
            list(DTYPE),
        )
    ) == [
        ("core", "kb82", "forward", "tf32"),
        ("core", "kb82", "forward", "float32"),
        ("depthwise", "dw_b1_c96_56_k7", "forward", "float32"),
        ("dense", "c_b3_c5k7_113_k2", "forward", "tf32"),
        ("dense", "c_b3_c5k7_113_k2", "forward", "float32"),
        ("core", "kb82", "forward", "float16"),
        ("core", "kb82", "forward", "bfloat16"),
    ]


def test_a_selection_that_has_nothing_of_what_is_asked_for_is_dropped() -> None:
    """No layer left must not mean every layer."""
    (only,) = narrowed(RECORDED, ["kb56"], *ALL)
    assert (only.suite, only.layers) == ("core", ("kb56",))
    (half,) = narrowed(RECORDED, [], list(DIRECTIONS), [Precision.BFLOAT16])
    assert keys([half])[0] == ("core", "kb55", "forward", "bfloat16")


def test_what_no_record_holds_is_refused() -> None:
    with pytest.raises(
        ConvSmithError, match="no layer kb54 in core, depthwise, dense; there is kb50"
    ):
        narrowed(RECORDED, ["kb55", "kb54"], *ALL)
    with pytest.raises(ConvSmithError, match="holds nothing of these"):
        narrowed(RECORDED, ["kb56"], list(DIRECTIONS), [Precision.FLOAT16])


def test_layouts_are_kept() -> None:
    own = Selection(layouts=(Layout.NHWC,))
    (narrow,) = narrowed([own], ["kb55"], *ALL)
    assert narrow.layouts == (Layout.NHWC,)
