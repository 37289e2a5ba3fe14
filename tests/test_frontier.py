"""Pictures of the order and of a run say what the order says."""

import re
import xml.etree.ElementTree as ET
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from narcli.order import Order, named, order_rows
from narcli.order.sketches import drawn
from narcli.viz.board import MARGIN, TITLE, _Board
from narcli.viz.frontier import COLUMNS, _Mosaic, filmstrip, frame_pixels, run_frames, shown_steps
from narcli.viz.frontier import MAX_FRAMES as MAX_RUN_FRAMES
from narcli.viz.orders import MAX_FRAMES, SIDE_MOVING, _Sheet, order_frames, order_image, order_pdf, order_svg
from narcli.viz.style import (
    BACKGROUND,
    CHECKER,
    DARK,
    EMPTY,
    FRONTIER,
    LIGHT,
    caption,
    comparison,
    headline,
    ink,
    luminance,
    ramp,
    step_colors,
    title,
)
from narcli.viz.vector import fitted, font, text_width

grids = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)
SQUARE = Order((16, 16))
CLIP = Order((4, 4, 4))
VAR = named("var", (16, 16))
OTHERS = [named(name, (16, 16)) for name in ("raster", "zipar:8", "par:4", "par:16")]


def noise(seed=0, size=(256, 256)):
    """A picture without any of the colours of the frame around it."""
    pixels = np.random.default_rng(seed).integers(120, 200, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def has(image, color):
    return int((np.asarray(image) == color).all(axis=-1).sum())


# --- words and colours ---------------------------------------------------------------------------


def test_captions_tell_step_width_and_progress():
    assert caption(SQUARE, 11) == "step 12/31 · 12 cells in parallel · 78/256 done"
    assert caption(SQUARE, 0) == "step 1/31 · 1 cell in parallel · 1/256 done"
    assert caption(SQUARE, 30).endswith("256/256 done")
    assert comparison(SQUARE) == "31 steps instead of 256 in raster order, up to 16 cells in parallel"


def test_words_fit_every_order():
    raster, zipar, par, _ = OTHERS
    assert headline(SQUARE).startswith("16x16 grid: 31 steps") and title(SQUARE) == "16x16 decoding order"
    assert headline(raster) == "16x16 grid, raster: 256 steps, one cell at a time"
    assert caption(raster, 11) == "step 12/256 · one cell at a time"
    assert title(zipar) == "16x16 decoding order, zipar:8"
    assert comparison(par) == "67 steps instead of 256 in raster order, up to 4 cells in parallel"
    assert comparison(VAR) == (
        "10 steps instead of 256 in raster order, up to 256 cells in parallel, 680 in all"
    )
    assert caption(VAR, 4) == "step 5/10 · 5x5 cells in parallel · 55/680 done"


def test_the_ramp_grows_lighter_at_every_step_and_never_looks_like_the_frontier():
    colors = step_colors(31)
    light = [luminance(color) for color in colors]
    assert light == sorted(light)
    assert len(set(colors)) == 31
    assert all(np.abs(np.subtract(color, FRONTIER)).max() > 80 for color in colors)
    assert ramp(-1) == colors[0] and ramp(2) == colors[-1]
    assert step_colors(1) == [colors[0]]


# --- of an order ---------------------------------------------------------------------------------


@given(grids)
def test_rows_hold_every_cell_in_decoding_order(sizes):
    order = Order(sizes)
    rows = order_rows(order)
    assert [row["cell"] for row in rows] == list(order.generation)
    done = set()
    for row in rows:
        assert row["step"] == order.step_of[row["cell"]] + 1 == sum(row["coordinates"]) + 1
        assert {p["cell"] for p in row["predecessors"]} <= done
        done.add(row["cell"])


@settings(deadline=None, max_examples=15)
@given(grids)
def test_the_picture_of_any_grid_shows_each_step_as_often_as_it_has_cells(sizes):
    order = Order(sizes)
    board = _Board(order, width=960, height=960, largest=40)
    side = board.pitch - board.gap
    counts = np.bincount(board.steps[board.steps >= 0], minlength=len(order.steps))
    assert counts.tolist() == [len(cells) * side**2 for cells in order.steps]
    for cell in range(order.cells):
        x, y, *size = board.box(cell)
        assert size == [side, side] and np.all(board.cells[y : y + side, x : x + side] == cell)
    image = order_image(order)
    assert max(image.size) < 1300
    assert all(has(image, color) for color in step_colors(len(order.steps)))


@pytest.mark.parametrize("sizes", [(300, 300), (1, 500), (64, 8, 8)])
def test_large_grids_are_drawn_in_bounded_size(sizes):
    assert max(order_image(Order(sizes)).size) < 1400
    frames = order_frames(Order(sizes))
    assert len(frames) <= MAX_FRAMES + 1
    assert max(frames[0].size) < 900
    assert has(frames[-1], EMPTY) == 0, "the last frame shows the last step"


@settings(deadline=None, max_examples=15)
@given(grids)
def test_the_animation_lights_up_each_frontier(sizes):
    order = Order(sizes)
    frames = order_frames(order)
    assert len(frames) == len(order.steps) + 1
    assert len({frame.size for frame in frames}) == 1
    *frames, last = frames
    assert not has(last, FRONTIER) and not has(last, EMPTY), "nothing is bright in the end"
    assert all(has(last, color) for color in step_colors(len(order.steps)))
    board = _Board(order, width=480, height=480, largest=26)
    side = board.pitch - board.gap
    for s, frame in enumerate(frames):
        above = frame.crop((0, 0, frame.width, frame.height - MARGIN - 10))  # without the progress line
        assert has(above, FRONTIER) == len(order.steps[s]) * side**2
        assert has(above, EMPTY) == sum(map(len, order.steps[s + 1 :])) * side**2


@pytest.mark.parametrize("side", [16, 32])
def test_scales_are_equally_large_and_their_cells_finer_and_finer(side):
    order = named("var", (side, side))
    board = _Board(order, width=960, height=960, largest=40)
    assert [label for *_, label in board.labels] == [f"{n}x{n}" for n, _ in order.panels]
    last = 10**9
    for start, (n, _) in zip(order.starts, order.panels, strict=True):
        boxes = [board.box(cell) for cell in range(start, start + n * n)]
        ends = [(x + width, y + height) for x, y, width, height in boxes]
        across, down = ({end[k] - box[k] for end in ends[-1:] for box in boxes[:1]} for k in (0, 1))
        assert across == down == {board.pitch * side - board.gap}
        sizes = {size for *_, width, height in boxes for size in (width, height)}
        assert max(sizes) - min(sizes) <= 1 and max(sizes) < last
        last = min(sizes)
        for cell, (x, y, width, height) in enumerate(boxes, start):
            assert np.all(board.cells[y : y + height, x : x + width] == cell)
    assert (board.cells >= 0).sum() == sum(
        width * height for cell in range(order.cells) for *_, width, height in [board.box(cell)]
    )


def test_the_animation_of_scales_lights_up_one_after_the_other():
    *frames, last = order_frames(VAR)
    assert not has(last, FRONTIER) and all(has(last, color) for color in step_colors(10))
    assert len(frames) == 10 and max(frames[0].size) < 1000
    colors = step_colors(10)
    for s, frame in enumerate(frames):
        above = frame.crop((0, 0, frame.width, frame.height - MARGIN - 10))
        assert [has(above, color) > 0 for color in colors] == [k < s for k in range(10)]
        assert has(above, FRONTIER) and (has(above, EMPTY) > 0) == (s < 9)


@pytest.mark.parametrize("order", [*OTHERS, VAR], ids=lambda order: order.name)
def test_the_hover_texts_of_every_order_name_what_predicts_a_cell(order):
    root = ET.fromstring(order_svg(order))
    space = "{http://www.w3.org/2000/svg}"
    texts = [t.text for t in root.findall(f"{space}rect/{space}title")]
    assert len(texts) == order.cells and texts[0] == "step 1, cell 0, predicted from nothing"
    assert "(right)" not in "".join(texts), "the head serves all directions"
    assert {
        "raster": "step 17, cell 16, predicted from 15",
        "zipar:8": "step 17, cell 16, predicted from 15",
        "par:4": "step 12, cell 16, predicted from 7",
        "par:16": "step 20, cell 16, predicted from 3",
        "var": "step 4, cell 16, predicted from the smaller grids",
    }[order.name] == texts[16]
    assert ("a learned token" in "".join(texts)) == order.name.startswith("par")


def test_the_drawing_is_valid_xml_with_one_square_a_cell():
    order = Order((2, 3, 4))
    root = ET.fromstring(order_svg(order))
    space = "{http://www.w3.org/2000/svg}"
    squares = [square for square in root.findall(f"{space}rect") if square.find(f"{space}title") is not None]
    assert len(squares) == 24
    assert (
        squares[17].find(f"{space}title").text
        == "step 4, cell 17, predicted from 16 (right), 13 (down), 5 (back)"
    )
    words = [text.text for text in root.findall(f"{space}text")]
    assert words[:2] == [title(order), comparison(order)] and {"t = 0", "t = 1", "7"} <= set(words)


# --- of several orders ---------------------------------------------------------------------------

NAMES = ("nar", "raster", "zipar:8", "par:4", "par:16", "var", "mar", "maskgit", "sjd")
ALL = [drawn(name, (16, 16)) for name in NAMES]


@pytest.mark.parametrize("count", range(2, 10))
def test_orders_stand_side_by_side_each_with_its_own_steps(count):
    orders = ALL[:count]
    sheet, image = _Sheet(orders, DARK, 300), np.asarray(order_image(*orders))
    assert image.shape[:2] == (sheet.drawing.height, sheet.drawing.width) and max(image.shape) < 1400
    seen = np.zeros(image.shape[:2], int)
    for (board, (x, y)), order in zip(sheet.parts, orders, strict=True):
        assert board.order is order
        seen[y : y + board.size[1], x : x + board.size[0]] += 1
        colors = step_colors(len(order.steps))
        for cell in range(0, order.cells, 7):
            left, top, *_ = board.box(cell)
            assert tuple(image[y + top, x + left]) == colors[order.step_of[cell]]
    assert seen.max() == 1, "no board on another"


def test_the_bars_tell_the_passes_at_one_scale():
    orders = [drawn(name, (16, 16)) for name in ("nar", "raster", "par:4")]
    sheet = _Sheet(orders, DARK, 300)
    image = np.asarray(order_image(*orders))
    for order, (x, _), bar in zip(orders, sheet.corners, sheet.bars, strict=True):
        line = image[bar + 1, x : x + sheet.width]
        assert (line != EMPTY).any(-1).sum() == round(sheet.width * len(order.steps) / 256)


def test_the_animation_shows_all_orders_after_equally_many_passes():
    orders = [drawn(name, (8, 8), 1) for name in ("nar", "raster", "par:4", "maskgit")]
    frames, sheet = order_frames(*orders), _Sheet(orders, DARK, SIDE_MOVING)
    assert len(frames) == 64 + 1 and len({frame.size for frame in frames}) == 1
    for s, frame in enumerate(frames):
        pixels = np.asarray(frame)
        for (board, (x, y)), (left, _), bar in zip(sheet.parts, sheet.corners, sheet.bars, strict=True):
            part = pixels[y : y + board.size[1], x : x + board.size[0]]
            side = board.pitch - board.gap
            lit = len(board.order.steps[s]) if s < board.count else 0
            assert (part == FRONTIER).all(-1).sum() == lit * side**2
            left_over = sum(map(len, board.order.steps[s + 1 :]))
            assert (part == EMPTY).all(-1).sum() == left_over * side**2
            line = pixels[bar + 1, left : left + sheet.width]
            assert (line != EMPTY).any(-1).sum() == max(1, round(sheet.width * min(s + 1, board.count) / 64))
            assert bool((line == FRONTIER).all(-1).any()) == (s < board.count)
    assert not has(frames[-1], FRONTIER)


def test_illustrative_orders_are_called_so_in_every_drawing():
    words = [text.text for text in ET.fromstring(order_svg(*ALL)).iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("illustrative, seed 0") == 2 and words.count("seed 0") == 1
    assert "10 passes, up to 256 cells, 680 in all" in words and "256 passes, one cell each" in words
    assert title(ALL[-1]) == "16x16 decoding order, sjd (illustrative, seed 0)"
    assert headline(ALL[6]).startswith("16x16 grid, mar (seed 0): 64 steps instead of 256")


@pytest.mark.parametrize("orders", [ALL, [SQUARE], [Order((2, 3, 4))]], ids=["all", "one", "video"])
def test_the_drawing_has_no_script_and_nothing_from_elsewhere(orders):
    text = order_svg(*orders, theme=LIGHT)
    root = ET.fromstring(text)
    tags = {element.tag.partition("}")[2] for element in root.iter()}
    assert tags == {"svg", "title", "rect", "text"}
    names = {name for element in root.iter() for name in element.attrib}
    assert not any(name.startswith("on") or "href" in name or name == "style" for name in names)
    assert text.count("://") == 1, "the namespace"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    image = order_image(*orders)
    assert (width, height) == image.size, "as large as the picture"
    for box in root.findall("{http://www.w3.org/2000/svg}rect")[1:]:
        x, y, across, down = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        assert x >= 0 and x + across <= width and y >= 0 and y + down <= height and min(across, down) > 0


def objects_of(pdf):
    """The objects of a PDF, found by its table of places; streams are unpacked."""
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", pdf)[1])
    count = int(re.match(rb"xref\n0 (\d+)\n", pdf[start:])[1])
    table = pdf[start:].split(b"\n")[2 : 2 + count]
    assert all(len(line) == 19 for line in table) and table[0] == b"0000000000 65535 f "
    found = {}
    for number, line in enumerate(table[1:], 1):
        body = pdf[int(line[:10]) :]
        assert body.startswith(b"%d 0 obj\n" % number)
        body = body[: body.index(b"\nendobj\n")] if b"stream" not in body[:400] else body
        found[number] = body
        if match := re.match(rb"\d+ 0 obj\n<< /Length (\d+)[^>]*>>\nstream\n", body):
            data = body[match.end() : match.end() + int(match[1])]
            assert body[match.end() + int(match[1]) :].startswith(b"\nendstream\nendobj\n")
            found[number] = zlib.decompress(data)
    return found


@pytest.mark.parametrize("orders", [ALL, [SQUARE]], ids=["all", "one"])
def test_the_pdf_holds_each_cell_as_a_rectangle_and_its_font(orders):
    pdf = order_pdf(*orders, theme=LIGHT)
    assert pdf.startswith(b"%PDF-1.4\n") and pdf == order_pdf(*orders, theme=LIGHT)
    found = objects_of(pdf)
    page = found[4].decode("cp1252")
    rectangles = re.findall(r"^([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+) re f$", page, re.MULTILINE)
    image = order_image(*orders)
    assert tuple(map(float, rectangles[0][2:])) == image.size
    squares = ET.fromstring(order_svg(*orders)).findall("{http://www.w3.org/2000/svg}rect")[1:]
    assert len(squares) > sum(order.cells for order in orders)
    assert rectangles[1:] == [tuple(box.attrib[k] for k in ("x", "y", "width", "height")) for box in squares]
    assert f"/MediaBox [0 0 {0.75 * image.width:g} {0.75 * image.height:g}]".encode() in found[3]
    texts = re.findall(r"\((.*?)\) Tj", page)
    for order in orders:
        assert (order.name in texts) == (len(orders) > 1)
    assert ("illustrative, seed 0" in texts) == (len(orders) > 1)
    assert found[7] == font(1000).font_bytes, "the font is embedded"
    widths = list(map(int, re.search(rb"/Widths \[([\d ]+)\]", found[5])[1].split()))
    assert len(widths) == 224 and widths[ord("n") - 32] == round(font(1000).getlength("n"))


def test_texts_of_a_pdf_are_escaped():
    order = Order((2, 2), name=r"a(b)\\")
    assert rb"a\(b\)\\" in objects_of(order_pdf(order))[8]


# --- of a run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "pixels"), [((16, 16), (256, 256)), ((3, 5), (100, 70)), ((6,), (96, 64))])
def test_frames_show_the_image_exactly_where_it_is_decoded(sizes, pixels):
    order, image = Order(sizes), noise(size=pixels)
    mosaic = _Mosaic(order, [(image,)])
    final = mosaic.arrange([(image,)])
    *frames, last = run_frames(order, [(image,)])
    assert len(frames) == len(order.steps) and not has(last, FRONTIER)
    *shown, held = (np.asarray(frame)[: -MARGIN - 40, -MARGIN - mosaic.width :] for frame in (*frames, last))
    assert np.array_equal(shown[-1], held), "the last frame holds the same picture"
    rows, columns = (1, *sizes)[-2:]
    for s, frame in enumerate(frames):
        shown = np.asarray(frame)
        top = MARGIN + (shown.shape[0] - 2 * MARGIN - 50 - mosaic.height) // 2
        shown = shown[top : top + mosaic.height, shown.shape[1] - MARGIN - mosaic.width :][:, : mosaic.width]
        y, x = np.mgrid[: mosaic.height, : mosaic.width]
        step = y * rows // mosaic.height + x * columns // mosaic.width  # the distance of the cell of a pixel
        assert np.array_equal(shown[step <= s], final[step <= s])
        assert np.isin(shown[step > s], CHECKER).all()
    assert np.array_equal(shown, final)


def test_decode_mode_shows_the_partial_images_and_still_hides_undecoded_cells():
    partials = [[(Image.new("RGB", (64, 64), (s, 200, 100)),)] for s in range(31)]
    frames = run_frames(SQUARE, [(noise(size=(64, 64)),)], partials)
    for s in (0, 11, 30):
        assert has(frames[s], (s, 200, 100)) == len([n for n in SQUARE.step_of if n <= s]) * 16 * 16
        assert (has(frames[s], CHECKER[0]) > 0) == (s < 30)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 16, 20])
def test_samples_stand_side_by_side_in_a_near_square_up_to_sixteen(count):
    colors = [(200, 10 * k, 50) for k in range(count)]
    images = [Image.new("RGB", (128, 128), color) for color in colors]
    frame = run_frames(SQUARE, [(image,) for image in images])[-1]
    areas = [has(frame, color) for color in colors]
    assert all(area == areas[0] > 80**2 for area in areas[:16])
    assert not any(areas[16:])
    assert frame.width < 1000 and frame.height < 600


def test_small_images_are_enlarged_by_whole_factors_and_large_ones_reduced():
    assert _Mosaic(SQUARE, [(noise(size=(32, 32)),)]).tile == (256, 256)
    assert _Mosaic(SQUARE, [(noise(size=(100, 100)),)]).tile == (200, 200)
    assert _Mosaic(SQUARE, [(noise(size=(256, 256)),)]).tile == (256, 256)
    assert _Mosaic(SQUARE, [(noise(size=(1024, 512)),)]).tile == (384, 192)


def test_the_filmstrip_ends_with_the_finished_image():
    strip = filmstrip(SQUARE, [(Image.new("RGB", (64, 64), (200, 10, 50)),)])
    whole = has(strip.crop((strip.width - MARGIN - 192, 0, strip.width, strip.height)), (200, 10, 50))
    assert whole == 192 * 192
    assert whole < has(strip, (200, 10, 50)) < COLUMNS * whole
    assert filmstrip(Order((2, 2)), [(noise(size=(64, 64)),)]).size[0] < strip.size[0]


def test_the_filmstrip_begins_with_the_first_step():
    strip = filmstrip(SQUARE, [(Image.new("RGB", (64, 64), (200, 10, 50)),)])
    first = strip.crop((0, 0, MARGIN + 192 + 8, strip.height))
    assert has(first, (200, 10, 50)) == 192 * 192 // 256 and has(first, EMPTY) > 100**2
    assert not any(has(first, color) for color in step_colors(31))


@pytest.mark.parametrize("draw", [lambda *a, **k: run_frames(*a, **k)[-1], filmstrip])
@pytest.mark.parametrize("order", [SQUARE, CLIP], ids=["image", "video"])
def test_a_title_stands_above_and_changes_nothing_below(draw, order):
    clips = [colored_clip() if order is CLIP else (noise(size=(64, 64)),)]
    plain, titled = draw(order, clips), draw(order, clips, title=("golden retriever", "seed 0", "emoji"))
    assert titled.size == (plain.width, plain.height + TITLE)
    assert np.array_equal(np.asarray(titled)[TITLE + MARGIN :], np.asarray(plain)[MARGIN:])
    head = titled.crop((0, 0, titled.width, MARGIN + TITLE - 8))
    assert has(head, DARK.text) > 50 and not has(plain.crop((0, 0, plain.width, MARGIN)), DARK.text)
    size = clips[0][0].size
    if draw is not filmstrip:
        assert frame_pixels(order, 1, len(clips[0]), size) == titled.width * titled.height


def test_titles_are_cut_where_the_picture_ends_and_keep_seed_and_model():
    long = fitted(["a red apple on a table " * 9, "seed 4294967295", "nar-xxl-256"], 17, 500)
    assert long.endswith("… · seed 4294967295 · nar-xxl-256") and long.startswith("a red apple on")
    assert 440 < text_width(long, 17) <= 500
    assert fitted(["dog", "seed 0", "emoji"], 17, 500) == "dog · seed 0 · emoji"
    narrow = fitted(["dog", "seed 0", "a name of a model that is longer than all of the picture"], 17, 200)
    assert narrow.startswith("dog · seed 0") and narrow.endswith("…") and text_width(narrow, 17) <= 200
    assert fitted(["x"], 17, 0) == "…"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("café – “déjà vu”", "cafe - “deja vu”"),
        ("食べ物 apple", "… apple"),
        ("red\x1b[2J\napple\u202e", "red…[2J apple…"),
        ("<script>&amp;", "<script>&amp;"),
    ],
)
def test_titles_have_only_letters_of_the_font(text, line):
    assert fitted([text], 17, 10_000) == line


def test_the_light_theme_is_light_everywhere():
    clips, size = [(noise(size=(64, 64)),)], (64, 64)
    frames = run_frames(SQUARE, clips, title=["dog"], theme=LIGHT)
    strip = filmstrip(SQUARE, clips, title=["dog"], theme=LIGHT)
    sheets = (
        order_image(SQUARE, theme=LIGHT),
        order_frames(SQUARE, theme=LIGHT)[5],
        order_frames(SQUARE, VAR, theme=LIGHT)[5],
    )
    for image in (frames[5], strip, *sheets):
        assert has(image, LIGHT.background) > 0.1 * image.width * image.height
        assert not any(has(image, color) for color in (EMPTY, FRONTIER, *CHECKER, DARK.muted))
        ink_of_numbers = has(image, BACKGROUND) + has(image, DARK.text)
        assert bool(ink_of_numbers) == (image is sheets[0])
    assert has(frames[5], LIGHT.frontier) and has(frames[5], LIGHT.checker[0]) and has(frames[5], LIGHT.text)
    assert not has(frames[-1], LIGHT.frontier)
    assert size == clips[0][0].size


@pytest.mark.parametrize("theme", [DARK, LIGHT], ids=["dark", "light"])
def test_colours_can_be_told_apart_in_every_theme(theme):
    def contrast(one, other):
        low, high = sorted(_relative(color) + 0.05 for color in (one, other))
        return high / low

    assert contrast(theme.text, theme.background) > 12 and contrast(theme.muted, theme.background) > 4.5
    for color in step_colors(31):
        assert np.abs(np.subtract(color, theme.frontier)).max() > 80
        assert np.abs(np.subtract(color, theme.empty)).max() > 50
        assert contrast(ink(color), color) > 3.5
    assert np.abs(np.subtract(theme.empty, theme.background)).max() > 10


def _relative(color):
    """Relative luminance of sRGB."""
    parts = (np.array(color) / 255 + 0.055) / 1.055
    return float(
        np.where(np.array(color) > 10, parts**2.4, np.array(color) / 255 / 12.92) @ [0.2126, 0.7152, 0.0722]
    )


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        run_frames(SQUARE, [])
    with pytest.raises(ValueError, match="one size"):
        run_frames(SQUARE, [(noise(),), (noise(size=(64, 64)),)])
    with pytest.raises(ValueError, match="and length"):
        run_frames(CLIP, [(noise(),) * 8, (noise(),) * 4])
    for draw, steps in ((run_frames, 31), (filmstrip, 6)):
        with pytest.raises(ValueError, match=f"2 lists for {steps} steps"):
            draw(SQUARE, [(noise(),)], [[(noise(),)]] * 2)
        with pytest.raises(ValueError, match="without a place"):
            draw(CLIP, [(noise(),) * 8], holistic=True)
        with pytest.raises(ValueError, match="without a place"):
            draw(VAR, [(noise(),)])


@pytest.mark.parametrize("order", OTHERS, ids=lambda order: order.name)
def test_every_order_uncovers_its_cells_in_evenly_spaced_steps(order):
    color = (200, 10, 50)
    *frames, last = run_frames(order, [(Image.new("RGB", (64, 64), color),)])
    steps = shown_steps(order, still=False)
    assert len(frames) == len(steps) == min(len(order.steps), MAX_RUN_FRAMES)
    assert has(last, color) == 256 * 16 * 16 and not has(last, FRONTIER)
    assert (steps[0], steps[-1]) == (0, len(order.steps) - 1)
    strides = np.diff(steps)
    assert strides.min() >= 1 and strides.max() - strides.min() <= 1
    for s, frame in [*zip(steps, frames, strict=True)][::9]:
        assert has(frame, color) == sum(n <= s for n in order.step_of) * 16 * 16


def test_an_order_of_a_thousand_steps_is_shown_in_few_frames():
    order = named("raster", (32, 32))
    assert len(shown_steps(order, still=False)) == MAX_RUN_FRAMES
    assert shown_steps(order, still=True) == [0, 205, 409, 614, 818, 1023]
    assert len(shown_steps(Order((32, 32)), still=False)) == 63


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(("side", "pixels"), [(16, 256), (32, 512)])
def test_scales_sharpen_the_whole_picture_at_every_step(side, pixels, count):
    order = named("var", (side, side))

    def clips(s):
        return [(Image.new("RGB", (pixels, pixels), (100 + s, 10, 20 * k)),) for k in range(count)]

    *frames, last = run_frames(order, clips(9), list(map(clips, range(10))), title=["x"])
    assert not has(last, FRONTIER) and has(last, (109, 10, 0)) == has(frames[-1], (109, 10, 0))
    assert len(frames) == 10 and frame_pixels(order, count, 1, (pixels, pixels)) == np.prod(frames[0].size)
    areas = [[has(frame, (100 + s, 10, 20 * k)) for k in range(count)] for s, frame in enumerate(frames)]
    assert len({area for step in areas for area in step}) == 1 and areas[0][0] > 180**2
    assert not any(has(frame, CHECKER[0]) for frame in frames)
    strip = filmstrip(order, clips(9), list(map(clips, shown_steps(order, still=True))))
    assert [has(strip, (100 + s, 10, 0)) > 90**2 for s in range(10)] == [
        s in shown_steps(order, still=True) for s in range(10)
    ]


# --- of a run of videos --------------------------------------------------------------------------


def colored_clip(red=200, frames=8, size=(64, 64)):
    return [Image.new("RGB", size, (red, 20 * f, 50)) for f in range(frames)]


def cells_by(order, s, t):
    """How many cells of slice t are decoded by step s."""
    area = order.sizes[1] * order.sizes[2]
    return sum(step <= s for step in order.step_of[t * area : (t + 1) * area])


def test_the_frames_of_a_slice_appear_where_its_cells_are_decoded():
    *frames, last = run_frames(CLIP, [colored_clip()])
    assert not has(last, FRONTIER)
    assert len(frames) == len(CLIP.steps) == 10
    whole = has(frames[-1], (200, 0, 50))
    assert whole >= 64**2
    for s, frame in enumerate(frames):
        for f in range(8):
            share = cells_by(CLIP, s, f // 2) / 16
            assert has(frame, (200, 20 * f, 50)) == share * whole, (s, f)


def test_the_panel_of_a_slice_stands_above_its_frames():
    frame = np.asarray(run_frames(CLIP, [colored_clip()])[-2])
    board = (frame == FRONTIER).all(-1) | np.isin(frame, step_colors(10)).all(-1)
    panels = np.flatnonzero(board[:-60].any(0))  # without the line that says the step
    starts = panels[np.flatnonzero(np.diff(panels, prepend=-99) > 10)]
    assert len(starts) == 4
    for f in range(8):
        at = np.argwhere((frame == (200, 20 * f, 50)).all(-1))
        left, right = at[:, 1].min(), at[:, 1].max()
        end = [*starts[1:], frame.shape[1]][f // 2]
        assert starts[f // 2] <= left < right < end
        assert at[:, 0].min() > np.argwhere(board[:-60])[:, 0].max()


@pytest.mark.parametrize(("clips", "size"), [(1, (64, 64)), (1, (24, 24)), (4, (64, 64)), (2, (300, 200))])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 16, 16), (1, 8, 8)])
def test_the_frames_of_a_slice_are_as_wide_as_its_grid(sizes, clips, size):
    order, clip = Order(sizes), colored_clip(frames=4 * sizes[0], size=size)
    frame = np.asarray(run_frames(order, [clip] * clips)[-1])
    grid = np.any([(frame == color).all(-1) for color in step_colors(len(order.steps))], axis=0)[:-60]
    ends = np.flatnonzero(grid.any(0))
    spans = np.split(ends, np.flatnonzero(np.diff(ends) > 10) + 1)
    assert len(spans) == sizes[0]
    for t, span in enumerate(spans):
        colors = [image.getpixel((0, 0)) for image in clip[4 * t : 4 * t + 4]]
        inside = np.flatnonzero(np.any([(frame == color).all(-1) for color in colors], axis=0)[:-60].any(0))
        inside = inside[(inside >= span[0]) & (inside <= span[-1])]
        assert abs((inside[-1] - inside[0]) - (span[-1] - span[0])) <= 4


def test_four_clips_are_shown_each_in_a_row():
    clips = [colored_clip(100 + 20 * k) for k in range(6)]
    frame = np.asarray(run_frames(CLIP, clips)[-1])
    tops = [np.argwhere((frame == (100 + 20 * k, 0, 50)).all(-1))[:, 0].min() for k in range(4)]
    assert tops == sorted(tops) and len(set(tops)) == 4
    assert not (frame == (200, 0, 50)).all(-1).any()


def test_clips_of_holistic_tokens_are_never_hidden():
    partials = [[colored_clip(100 + s)] for s in range(10)]
    frames = run_frames(CLIP, [colored_clip()], partials, holistic=True)
    assert not has(frames.pop(), FRONTIER)
    areas = [has(frame, (100 + s, 0, 50)) for s, frame in enumerate(frames)]
    assert areas[0] == areas[-1] >= 64**2
    assert not any(has(frame, CHECKER[0]) for frame in frames)
    assert has(frames[0], FRONTIER) < has(frames[5], FRONTIER)


def test_a_filmstrip_of_a_video_has_two_steps_in_a_row():
    strip = filmstrip(CLIP, [colored_clip()])
    last = strip.crop((strip.width // 2, 2 * strip.height // 3, strip.width, strip.height))
    whole = has(last, (200, 140, 50))
    assert whole > 0 and all(has(last, (200, 20 * f, 50)) == whole for f in range(8))
    assert has(strip.crop((0, 0, strip.width // 2, strip.height // 2)), (200, 140, 50)) == 0


@pytest.mark.parametrize(
    ("sizes", "frames"), [((3, 2, 5), 3), ((1, 4, 4), 4), ((5, 3, 3), 16), ((16, 8, 8), 16)]
)
def test_any_grid_and_number_of_frames_can_be_shown(sizes, frames):
    for image in (
        *run_frames(Order(sizes), [colored_clip(frames=frames)])[-1:],
        filmstrip(Order(sizes), [colored_clip(frames=frames)]),
    ):
        assert max(image.size) < 5000 and all(
            has(image, (200, 20 * f % 256, 50)) for f in range(frames) if f < 12
        )


def test_frames_do_not_touch_the_images_and_share_no_memory():
    image = noise()
    before = np.asarray(image).copy()
    first, second, *_ = run_frames(SQUARE, [(image,)])
    second.paste((0, 0, 0), (0, 0, *second.size))
    assert np.array_equal(np.asarray(image), before)
    assert has(first, BACKGROUND)
