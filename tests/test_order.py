"""The decoding order, checked against its definition on any grid."""

import itertools
import json
from math import prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narcli.errors import UsageError
from narcli.order import (
    HEADS,
    NONE,
    Order,
    format_grid,
    neighbor,
    order_rows,
    parse_grid,
    raster,
    regions,
    scales,
    zipar,
)
from narcli.order.sketches import Sketch, drawn, masked_counts, permutation

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


# --- the orders of other systems -----------------------------------------------------------------

GOLDEN = json.loads((Path(__file__).with_name("data") / "orders.json").read_text())


def any_order(draw):
    """An order of any kind, on a grid that it takes."""
    match draw(st.sampled_from(["neighbor", "raster", "zipar", "regions", "scales"])):
        case "neighbor":
            return neighbor(draw(grids))
        case "raster":
            return raster(draw(grids))
        case "zipar":
            rows, columns = draw(st.integers(1, 7)), draw(st.integers(3, 9))
            return zipar((rows, columns), draw(st.integers(2, columns - 1)))
        case "regions":
            side = draw(st.integers(1, 4))
            sizes = side * draw(st.integers(1, 3)), side * draw(st.integers(1, 3))
            return regions(sizes, side**2)
        case _:
            return scales(tuple(sorted(draw(st.sets(st.integers(1, 6), min_size=1, max_size=5)))))


orders = st.composite(any_order)()


@settings(max_examples=200, deadline=None)
@given(orders)
def test_every_order_decodes_every_cell_once_from_what_is_known(order):
    """No token is fed before it is drawn, and every term of a cell's logits is of this pass."""
    known = set()
    for index, step in enumerate(order.passes):
        assert bool(step.feeds) or index == 0
        assert {feed.token for feed in step.feeds} - {NONE} <= known
        assert len(step.cells) == len(step.sources) > 0
        for terms in step.sources:
            assert sum(source.weight for source in terms) == pytest.approx(1)
            assert all(NONE <= source.feed < len(step.feeds) for source in terms)
            assert all(0 <= source.head < len(order.heads) for source in terms)
            assert all(source.feed != NONE for source in terms) or index == 0
        assert not known & set(step.cells)
        known |= set(step.cells)
    assert known == set(range(order.cells))
    assert sorted(order.generation) == list(range(order.cells))


@settings(max_examples=200, deadline=None)
@given(orders)
def test_every_place_sees_itself_and_nothing_that_is_fed_later(order):
    written = set()
    for step in order.passes:
        slots = [feed.slot for feed in step.feeds]
        assert len(set(slots)) == len(slots)
        written.update(slots)
        for feed in step.feeds:
            assert feed.slot < feed.sees <= order.slots
            assert NONE <= feed.place < order.cells and NONE <= feed.learned < max(order.learned, 1)
            assert (feed.token == NONE) or (feed.learned == NONE)
        if not order.is_scattered:
            assert all(set(range(feed.sees)) <= written for feed in step.feeds)


@settings(max_examples=100, deadline=None)
@given(orders)
def test_predecessors_are_fed_by_the_pass_that_reads_them(order):
    if order.name.startswith("scales"):
        return  # its inputs are no tokens
    for cell in range(order.cells):
        fed = {feed.token for feed in order.passes[order.step_of[cell]].feeds}
        assert {p.cell for p in order.predecessors(cell)} <= fed


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (raster(tuple(GOLDEN["raster"]["grid"])), GOLDEN["raster"]["step_of"]),
        (neighbor(tuple(GOLDEN["next_neighbor"]["grid"])), GOLDEN["next_neighbor"]["step_of"]),
        *((regions(tuple(one["grid"]), one["regions"]), one["step_of"]) for one in GOLDEN["par"]),
        *((zipar(tuple(one["grid"]), one["window"]), one["step_of"]) for one in GOLDEN["zipar"]),
        *((scales(tuple(one["sides"])), one["step_of_sequence"]) for one in GOLDEN["next_scale"]),
    ],
    ids=lambda value: value.name if isinstance(value, type(raster((1,)))) else "",
)
def test_steps_are_those_of_the_released_systems(order, expected):
    assert list(order.step_of) == expected


@pytest.mark.parametrize(
    ("side", "window", "passes"),
    [(16, 4, 88), (16, 8, 144), (16, 12, 200), (24, 8, 224), (24, 12, 312), (24, 16, 400), (32, 8, 304)],
)
def test_zipar_takes_the_passes_of_its_released_code(side, window, passes):
    assert len(zipar((side, side), window).passes) == passes


@pytest.mark.parametrize(
    ("side", "count", "passes"), [(16, 4, 67), (24, 4, 147), (32, 4, 259), (16, 16, 31), (24, 16, 51)]
)
def test_par_takes_the_passes_of_its_released_code(side, count, passes):
    order = regions((side, side), count)
    assert (len(order.passes), order.learned, order.slots) == (passes, count - 1, side**2 - 1)


def test_var_takes_ten_passes_for_680_tokens():
    order = scales((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    assert (len(order.passes), order.cells, order.sizes) == (10, 680, (16, 16))
    assert [step.share for step in order.passes] == pytest.approx([k / 9 for k in range(10)])


def test_zipar_feeds_a_substitute_at_the_end_of_the_row_above_and_its_token_when_it_is_known():
    order = zipar((4, 5), 2)
    # Row 2 begins at pass 5 + 2: the end of row 1 predicts its first cell, from the last token of row 0.
    assert order.step_of[10] == 7
    (feed,) = [feed for feed in order.passes[7].feeds if feed.place == 9]
    assert (feed.token, feed.slot, feed.sees) == (4, 9, 10)
    # Row 1 is complete after pass 9, and the token takes the substitute's slot.
    (feed,) = [feed for feed in order.passes[10].feeds if feed.slot == 9]
    assert (feed.token, feed.place) == (9, 9)
    assert order.is_scattered and not raster((4, 5)).is_scattered
    # Row 3 begins two passes after row 2 and takes the newest token of row 1, cell (1, 3).
    assert [f.token for f in order.passes[order.step_of[15]].feeds if f.place == 14] == [8]


def test_guidance_clocks_are_those_of_the_released_systems():
    assert [step.clock for step in neighbor((3, 3)).passes] == [0, 1, 3, 6, 8]
    assert [step.clock for step in raster((2, 3)).passes] == [0, 0, 1, 2, 3, 4]
    assert [step.clock for step in regions((4, 4), 4).passes] == [0, 0, 1, 2, 0, 4, 8]
    assert [step.clock for step in zipar((3, 4), 2).passes] == [0, 0, 1, 2, 0, 1, 2, 4, 6, 7]


@pytest.mark.parametrize("window", [-1, 0, 1, 5, 9])
def test_a_window_that_is_none_is_refused_with_the_range(window):
    with pytest.raises(UsageError, match=rf"window is {window} .* expected 2 to 4"):
        zipar((5, 5), window)


@pytest.mark.parametrize("sizes", [(4, 16, 16), (16,), (5, 2)])
def test_zipar_takes_grids_of_two_axes(sizes):
    with pytest.raises(UsageError, match="does not decode the grid") as raised:
        zipar(sizes, 8)
    assert "16x16" in raised.value.hint


def test_cells_of_scales_have_coordinates_in_their_own_panel():
    order = scales((1, 2, 3))
    assert order.has_scales and not scales((4,)).has_scales and not Order((2, 3, 4)).has_scales
    assert (order.cells, order.starts, order.plane_of(4), order.plane_of(13)) == (
        14, (0, 1, 5), (1, 3), (2, 8)
    )  # fmt: skip
    assert [order.coordinates(cell) for cell in (0, 4, 8, 13)] == [(0, 0), (1, 1), (1, 0), (2, 2)]
    with pytest.raises(IndexError, match="cell 14 is outside"):
        order.coordinates(14)
    rows = order_rows(order)
    assert [row["cell"] for row in rows] == list(range(14))
    assert rows[8] == {"step": 3, "cell": 8, "panel": 2, "coordinates": [1, 0], "predecessors": []}
    assert "panel" not in order_rows(Order((2, 2)))[0]


def test_planes_are_slices_of_time_or_the_grid():
    assert Order((2, 3, 4)).planes == ((3, 4), (3, 4)) and Order((2, 3, 4)).plane_of(13) == (1, 1)
    assert Order((3, 4)).planes == ((3, 4),) and Order((5,)).planes == ((1, 5),)
    assert scales((1, 3)).planes == scales((1, 3)).panels == ((1, 1), (3, 3))


def test_predecessors_are_what_is_fed():
    assert [p.cell for cell in range(6) for p in raster((2, 3)).predecessors(cell)] == [0, 1, 2, 3, 4]
    assert [p.cell for p in zipar((4, 5), 2).predecessors(10)] == [4], "the substitute"
    par = regions((4, 4), 4)
    assert [tuple(p.cell for p in par.predecessors(cell)) for cell in (0, 2, 1, 3, 4, 6)] == [
        (), (0,), (10,), (), (1,), (3,)
    ]  # fmt: skip


@pytest.mark.parametrize(("sizes", "count"), [((4, 4), 3), ((4, 6), 16), ((4, 4), 0), ((2, 4, 4), 4)])
def test_regions_that_do_not_divide_the_grid_are_refused(sizes, count):
    with pytest.raises(UsageError, match="regions"):
        regions(sizes, count)


# --- orders that are only drawn -------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["mar"], ids=lambda case: f"{case['grid'][0]}-{case['num_iter']}")
def test_mar_decodes_the_permutation_of_its_released_code_from_the_end(case):
    sizes, seed = tuple(case["grid"]), case["numpy_seed"]
    assert permutation(prod(sizes), seed) == case["permutation"]
    order = drawn(f"mar:{case['num_iter']}", sizes, seed)
    assert list(order.step_of) == case["step_of"]
    assert (order.seed, order.illustrative, order.note) == (seed, False, f"seed {seed}")


@pytest.mark.parametrize("case", GOLDEN["masked_counts"])
def test_masked_orders_decode_the_cells_of_the_cosine_schedule(case):
    cells, steps = map(int, case.split("/"))
    assert masked_counts(cells, steps) == GOLDEN["masked_counts"][case]
    if (side := round(cells**0.5)) ** 2 == cells:
        for kind in ("mar", "maskgit"):
            order = drawn(f"{kind}:{steps}", (side, side), 3)
            assert list(map(len, order.steps)) == GOLDEN["masked_counts"][case]


@given(st.integers(1, 300), st.data())
def test_each_masked_step_decodes_a_cell_and_none_is_left(cells, data):
    steps = data.draw(st.integers(1, cells))
    counts = masked_counts(cells, steps)
    assert (len(counts), sum(counts), min(counts) >= 1) == (steps, cells, True)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["mar", "maskgit", "sjd"]),
)
def test_every_sketch_has_every_cell_once_and_is_that_of_its_seed(rows, columns, seed, name):
    order = drawn(name, (rows, columns), seed)
    assert isinstance(order, Sketch) and all(order.steps)
    assert sorted(order.generation) == list(range(rows * columns))
    assert order == drawn(name, (rows, columns), seed)
    assert order.illustrative == (name != "mar") == order.note.startswith("illustrative")
    assert "predecessors" not in order_rows(order)[0]
    if name == "sjd":
        assert list(order.generation) == list(range(rows * columns)) and order.widest <= 16


def test_defaults_of_sketches_are_those_of_the_released_settings():
    steps = {
        name: [len(drawn(name, (side, side)).steps) for side in (4, 16, 32)] for name in ("mar", "maskgit")
    }
    assert steps == {"mar": [16, 64, 64], "maskgit": [8, 8, 12]}
    assert drawn("sjd", (16, 16), 1).steps != drawn("sjd", (16, 16), 2).steps


def test_other_names_are_those_of_orders():
    assert drawn("zipar:2", (4, 5), 7) == zipar((4, 5), 2) and drawn("nar", (2, 3, 4)) == Order((2, 3, 4))


@pytest.mark.parametrize(
    ("name", "sizes", "message", "hint"),
    [
        ("mar:17", (4, 4), "mar:17 decodes the grid 4x4 in 17 steps, expected 1 to 16", "at least one cell"),
        ("maskgit:0", (4, 4), "in 0 steps, expected 1 to 16", "at least one cell"),
        ("mar", (4, 16, 16), "MAR does not decode the grid 4x16x16", "two axes"),
        ("maskgit", (9,), "MaskGIT does not decode the grid 9", "two axes"),
        ("sjd", (1, 1, 1), "SJD does not decode the grid 1x1x1", "two axes"),
        ("mar", (0, 4), "'0x4' has no decoding order", "16x16"),
        ("mar:x", (4, 4), "no order 'mar:x'", "mar:64"),
        ("sjd:4", (4, 4), "no order 'sjd:4'", "sjd takes none"),
        ("spiral", (4, 4), "no order 'spiral'", "nar, raster, zipar:8, par:4, var, mar, maskgit, sjd"),
        ("zipar:9", (4, 4), "window is 9", "raster order"),
    ],
)
def test_sketches_refuse_with_the_value_and_what_to_do(name, sizes, message, hint):
    with pytest.raises(UsageError) as raised:
        drawn(name, sizes)
    assert message in raised.value.message and hint in raised.value.hint
