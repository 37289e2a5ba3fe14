"""The decoding order, checked against its definition on any grid."""

import itertools
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narcli.errors import UsageError
from narcli.order import HEADS, format_grid, parse_grid
from narcli.order import neighbor as Order

grids = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)


@given(grids)
def test_every_cell_is_decoded_exactly_once(sizes):
    order = Order(sizes)
    assert sorted(order.generation) == list(range(prod(sizes)))
    assert order.cells == prod(sizes)


@given(grids)
def test_the_number_of_steps_is_the_sum_of_the_sizes_less_the_axes_plus_one(sizes):
    assert len(Order(sizes).steps) == sum(sizes) - len(sizes) + 1


@given(grids)
def test_a_step_holds_the_cells_of_one_distance_in_ascending_order(sizes):
    order = Order(sizes)
    for s, cells in enumerate(order.steps):
        assert list(cells) == sorted(cells)
        assert cells, "no step is empty"
        for cell in cells:
            assert order.step_of[cell] == s == sum(order.coordinates(cell))


@settings(max_examples=40, deadline=None)
@given(grids)
def test_predecessors_are_the_neighbors_exactly_one_step_earlier(sizes):
    order = Order(sizes)
    points = list(itertools.product(*map(range, sizes)))
    for cell, point in enumerate(points):
        # The slow definition: every cell one step earlier that differs from this one along one axis only.
        steps_back = {tuple(p - (a == axis) for a, p in enumerate(point)): axis for axis in range(len(sizes))}
        near = {(steps_back[q], other) for other, q in enumerate(points) if q in steps_back}
        found = order.predecessors(cell)
        assert {(p.axis, p.cell) for p in found} == near
        assert all(order.step_of[p.cell] == order.step_of[cell] - 1 for p in found)
        assert all(order.head_axis(p.head) == p.axis for p in found)
        assert [p.head for p in found] == [h for h in order.heads if h in {p.head for p in found}]


@given(grids)
def test_only_the_corner_has_no_predecessor(sizes):
    order = Order(sizes)
    assert [cell for cell in range(order.cells) if not order.predecessors(cell)] == [0]


@given(grids)
def test_coordinates_and_strides_agree_with_row_major_indices(sizes):
    order = Order(sizes)
    for cell, point in enumerate(itertools.product(*map(range, sizes))):
        assert order.coordinates(cell) == point
        assert sum(c * s for c, s in zip(point, order.strides, strict=True)) == cell


@pytest.mark.parametrize(
    ("sizes", "steps", "widest"),
    [
        ((16, 16), 31, 16),
        ((4, 16, 16), 34, 60),
        ((24, 24), 47, 24),
        ((2, 5), 6, 2),
        ((5, 2), 6, 2),
        ((7,), 7, 1),
        ((1, 1, 1), 1, 1),
    ],
)
def test_known_grids(sizes, steps, widest):
    order = Order(sizes)
    assert (len(order.steps), order.widest) == (steps, widest)


def test_heads_count_from_the_last_axis():
    assert Order((3,)).heads == ("right",)
    assert Order((3, 3)).heads == ("right", "down")
    video = Order((2, 3, 4))
    assert video.heads == HEADS == ("right", "down", "back")
    assert [(p.head, p.cell) for p in video.predecessors(12 + 4 + 1)] == [
        ("right", 16),
        ("down", 13),
        ("back", 5),
    ]


def test_a_head_that_the_grid_does_not_have_is_refused():
    with pytest.raises(ValueError):
        Order((4, 4)).head_axis("back")


@pytest.mark.parametrize("cell", [-1, 12])
def test_coordinates_outside_the_grid_are_refused(cell):
    with pytest.raises(IndexError, match="outside the grid 3x4"):
        Order((3, 4)).coordinates(cell)


@pytest.mark.parametrize("sizes", [(), (0,), (4, 0), (4, -1), (2, 2, 2, 2)])
def test_a_grid_without_an_order_is_a_usage_error(sizes):
    with pytest.raises(UsageError) as raised:
        Order(sizes)
    assert raised.value.exit_code == 2
    assert "16x16" in raised.value.hint


@given(grids)
def test_parse_grid_reads_what_format_grid_writes(sizes):
    assert parse_grid(format_grid(sizes)) == sizes


@pytest.mark.parametrize(
    ("text", "sizes"), [("16X16", (16, 16)), ("4×16×16", (4, 16, 16)), ("08x8", (8, 8)), ("7", (7,))]
)
def test_parse_grid_accepts(text, sizes):
    assert parse_grid(text) == sizes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "16x",
        "x16",
        "0x4",
        "-4x4",
        "4.5x4",
        "4x4x4x4",
        "four",
        "16 16",
        "１６x16",
        "²x2",
        "1e3",
        "9" * 5000,
    ],
)
def test_parse_grid_refuses_with_an_example(text):
    with pytest.raises(UsageError, match="not a grid") as raised:
        parse_grid(text)
    assert "16x16" in raised.value.hint
    assert len(raised.value.message) < 100


@given(st.text(max_size=12))
def test_parse_grid_returns_a_grid_or_a_usage_error(text):
    try:
        sizes = parse_grid(text)
    except UsageError:
        return
    assert 1 <= len(sizes) <= 3
    assert all(size >= 1 for size in sizes)
