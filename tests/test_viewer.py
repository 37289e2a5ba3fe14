"""Pages to step through runs and orders: their data, what they refuse, and what a browser makes of them."""

import json
import re
import time
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import narcli
from conftest import small_transformer
from narcli.checkpoints.load import load_tokenizer
from narcli.checkpoints.save import save_model
from narcli.cli import app
from narcli.errors import CheckpointError, UsageError
from narcli.media.readers import read_metadata
from narcli.order import NONE, Order, named
from narcli.order.sketches import drawn
from narcli.runs import pages
from narcli.viz import viewer
from narcli.viz.style import hexadecimal, ramp

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\u2028 &amp; \"'"
CLASS = "<svg onload=window.hacked=3> & dog"
ORDERS = ["nar", "raster", "zipar:3", "par:4"]
VAR = "var:1-2-3-4"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def narcli_(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in done.output
    return done


def data_of(page):
    """The data that the script of a page reads."""
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    )


def made_up(order, seed=0, heads=True):
    """A record of random numbers, as arrays by name."""
    random, cells = np.random.default_rng(seed), order.cells
    share = np.sort(random.random((cells, 5)) / 5, 1)[:, ::-1]
    record = {
        "tokens": random.integers(0, 64, cells),
        "probability": share[:, 0],
        "entropy": random.random(cells) * 5,
        "rank": random.integers(1, 9, cells),
        "codes": random.integers(0, 64, (cells, 5)),
        "probabilities": share,
    }
    if heads and len(order.heads) > 1:
        record["head_probability"] = random.random((cells, len(order.heads)))
        record["head_entropy"] = random.random((cells, len(order.heads)))
        record["disagreement"] = np.where(random.random(cells) < 0.2, np.nan, random.random(cells))
    return record


def made_run(name, sizes, frames=1, title=None, **more):
    """A run of noise in an order."""
    order, random = named(name, sizes), np.random.default_rng(1)
    clip = [Image.fromarray(random.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(frames)]
    partials = dict.fromkeys(viewer.partial_steps(order), clip) if order.has_scales else {}
    return viewer.Shown(order, title or name, {"order": name}, clip, partials, made_up(order), **more)


# --- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes"), [(name, (4, 8)) for name in ORDERS] + [("nar", (2, 3, 4)), (VAR, (4, 4))]
)
def test_sources_are_the_predecessors_and_what_is_seen_is_what_was_fed(name, sizes):
    order = named(name, sizes)
    data = viewer.order_data(order)
    for cell in range(order.cells):
        sources = data["from"][cell]
        told = [(token, data["heads"][head]) for token, head, _, _ in sources if token >= 0]
        assert told == [(p.cell, p.head) for p in order.predecessors(cell)]
    # By hand: the cells whose tokens were fed to slots that the place sees.
    slots = {}
    for index, step in enumerate(order.passes):
        slots |= {feed.slot: feed for feed in step.feeds}
        earlier = {cell for cells in order.steps[:index] for cell in cells}
        for cell, terms in zip(step.cells, step.sources, strict=True):
            if terms[0].feed == NONE or order.has_scales:
                continue
            visible = range(step.feeds[terms[0].feed].sees)
            seen = {slots[slot].token for slot in visible if slot in slots}
            unseen = {k for first, end in data["unseen"].get(cell, []) for k in range(first, end)}
            assert unseen == earlier - seen, cell
            empty = {k for first, end in data["holes"].get(cell, []) for k in range(first, end)}
            assert len(empty) == len([slot for slot in visible if slot not in slots])
            assert not empty & seen
    assert bool(data["holes"]) == (name == "zipar:3")


def test_a_place_without_its_token_names_the_substitute():
    data = viewer.order_data(named("zipar:3", (4, 8)))
    token, _, place, _ = data["from"][16][0]  # the first cell of the third row
    assert (token, place) == (7, 15) and data["holes"][16] == [[11, 15]]


def test_a_page_is_one_file_whose_policy_names_its_script_and_style():
    text = viewer.page([made_run("nar", (4, 4))])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", text) and "http://www.w3.org/2000/svg" in text
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")  # the name of a vocabulary
    assert "<noscript><h1>" in text and "data:image/webp;base64," in text.split("<noscript>")[1]


def test_texts_of_a_run_cannot_leave_their_place():
    run = made_run("nar", (4, 4), title=HOSTILE)
    run.facts["model"] = HOSTILE
    text = viewer.page([run], json.dumps({"schema": "narcli.run/1", "prompt": HOSTILE}))
    assert text.count("<script") == 3 and text.count("</script>") == 3
    assert "<img src=x" not in text
    assert data_of(text)["runs"][0]["title"] == HOSTILE
    assert unescape(re.search("<title>(.*?)</title>", text)[1]) == HOSTILE


def test_numbers_are_short_and_missing_ones_null():
    order = named("nar", (4, 4))
    record = data_of(viewer.page([made_run("nar", (4, 4))]))["runs"][0]["record"]
    full = made_up(order)
    np.testing.assert_allclose(record["entropy"], full["entropy"], rtol=1e-3)
    missing = [value is None for value in record["disagreement"]]
    assert missing == np.isnan(full["disagreement"]).tolist() and any(missing)


def test_what_a_page_cannot_show_is_refused(here):
    with pytest.raises(UsageError, match="up to 16,384 cells"):
        viewer.page([viewer.Shown(Order((200, 200)), "large")])
    with pytest.raises(ValueError, match="expected 1 to 8"):
        viewer.page([])
    done = narcli_("visualize-order", "--grid", "200x200", "-o", "a.html")
    assert done.exit_code == 2 and "A page shows up to 16,384 cells" in done.output
    assert not list(here.iterdir())


# --- commands ------------------------------------------------------------------------------------


def test_the_frontier_is_a_page_that_says_how_it_was_made(tiny, here):
    words = ("--seed", 3, "--model", tiny, "--frontier", "html", "-o", "{class}.png")
    assert narcli_("image", "--class", "207,281", *words).exit_code == 0
    page = here / "207_frontier.html"
    told = data_of(page.read_text("utf-8"))["runs"]
    assert [run["title"] for run in told] == [
        "class 207, golden retriever (dog)",
        "class 281, tabby cat (cat)",
    ] or len(told) == 2
    (result,) = narcli.load(tiny).images(207, seed=3, record=True)
    assert told[0]["record"]["tokens"] == result.tokens.tolist()
    np.testing.assert_allclose(told[0]["record"]["entropy"], result.record.entropy, rtol=1e-3, atol=1e-6)
    assert read_metadata(page)["frontier"] == {"format": "html", "mode": "reveal"}
    again = narcli_("rerun", page, "--verify", "--model", tiny, "-o", "again/{class}.png")
    assert again.exit_code == 0 and (here / "again/207_frontier.html").exists()
    assert narcli_("image", "--class", 207, *words, "--no-metadata").exit_code == 0
    quiet = (
        here / "207_frontier_1.html"
        if (here / "207_frontier_1.html").exists()
        else here / "207_1_frontier.html"
    ).read_text("utf-8")
    assert "golden" not in quiet and "narcli.run" not in quiet and str(tiny) not in quiet


def test_a_record_beside_a_picture_spares_the_model(tiny, here, monkeypatch):
    words = ("image", "--class", 207, "--seed", 0, "--frontier", "none", "--model", tiny, "--record", "cells")
    assert narcli_(*words, "--save-tokens", "-o", "a.png").exit_code == 0
    record = narcli.Record.load("a_record.safetensors")

    def never(*_, **__):
        raise AssertionError("a transformer was loaded")

    monkeypatch.setattr("narcli.decoding.load_transformer", never)
    for name in ("a.png", "a_tokens.safetensors", "a_record.safetensors"):
        done = narcli_("view", name, "--tokenizer", tiny, "-o", f"{name}.html")
        assert done.exit_code == 0, (name, done.output)
        (run,) = data_of((here / f"{name}.html").read_text("utf-8"))["runs"]
        assert (
            run["record"]["rank"] == record.rank.tolist()
            and run["tiles"] == 0
            and run["picture"]["frames"] == 1
        )


def test_a_file_without_a_record_is_run_again_and_nothing_else_is_written(tiny, here, monkeypatch):
    monkeypatch.setenv("NARCLI_IMAGE_MODEL", str(tiny))
    narcli_("image", "--class", "207,281", "--seed", 0, "--grid", "--frontier", "none", "-o", "{class}.png")
    before = sorted(here.iterdir())
    done = narcli_("view", "207.png", "207_grid.png", "--record", "heads", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [here / name for name in document["files"]] == [here / "207_view.html"]
    assert sorted({*here.iterdir()} - {*before}) == [here / "207_view.html"]
    runs = data_of((here / "207_view.html").read_text("utf-8"))["runs"]
    assert [len(run["record"]["disagreement"]) for run in runs] == [16, 16, 16]
    assert runs[0]["record"] == runs[1]["record"] != runs[2]["record"]
    shown = narcli_("rerun", "207_view.html")
    assert shown.exit_code == 2 and "of `narcli view`" in shown.output


def test_other_tokens_than_the_files_are_said(tiny, here, monkeypatch):
    monkeypatch.setenv("NARCLI_IMAGE_MODEL", str(tiny))
    narcli_("image", "--class", 207, "--seed", 0, "--frontier", "none", "--record", "cells", "-o", "a.png")
    narcli_("image", "--class", 207, "--seed", 1, "--frontier", "none", "-o", "b.png")
    (here / "a_record.safetensors").rename(here / "b_record.safetensors")  # of another sample: not used
    assert narcli_("view", "b.png", "-o", "b.html").exit_code == 0
    (result,) = narcli.load(tiny).images(207, seed=1)
    assert (
        data_of((here / "b.html").read_text("utf-8"))["runs"][0]["record"]["tokens"] == result.tokens.tolist()
    )
    monkeypatch.setattr("narcli.sampling.uniform_draws", lambda seeds, cells: torch.zeros(len(seeds), cells))
    done = narcli_("view", "a.png", "-o", "c.html")
    assert (
        done.exit_code == 0
        and "tokens differ" in done.output
        and "The page shows those of now" in done.output
    )


def test_damaged_records_and_foreign_files_are_refused(tiny, here):
    narcli_(
        "image", "--class", 207, "--frontier", "none", "--model", tiny, "--record", "cells", "-o", "a.png"
    )
    data = (here / "a_record.safetensors").read_bytes()
    (here / "a_record.safetensors").write_bytes(data[:-4])
    done = narcli_("view", "a.png", "--tokenizer", tiny)
    assert done.exit_code == 4 and "a_record.safetensors" in done.output
    (here / "b.html").write_text("<!doctype html><p>hello")
    assert narcli_("view", "b.html").exit_code == 4
    with pytest.raises(CheckpointError, match="holds no settings"):
        read_metadata(here / "b.html")


def test_pages_of_orders_are_made_without_a_model_and_made_again(here):
    for name in (*ORDERS, "var"):
        assert narcli_("visualize-order", "--order", name, "-o", f"{name[:3]}.html").exit_code == 0
    first = (here / "nar.html").read_bytes()
    assert narcli_("rerun", "nar.html", "-o", "nar2.html").exit_code == 0
    assert (here / "nar2.html").read_bytes() == first and len(first) < 150_000
    assert narcli_("view", "nar.html", "ras.html", "-o", "both.html").exit_code == 0
    runs = data_of((here / "both.html").read_text("utf-8"))["runs"]
    assert [(run["order"], run["steps"]) for run in runs] == [("nar", 31), ("raster", 256)]


def test_clips_and_tokens_without_a_place_are_shown(tiny_video, larp, here):
    words = ("--class", 1, "--seed", 0, "--frontier", "html")
    assert narcli_("video", *words, "--model", tiny_video, "--format", "gif", "-o", "a.gif").exit_code == 0
    (run,) = data_of((here / "a_frontier.html").read_text("utf-8"))["runs"]
    assert run["picture"]["frames"] == 6 and run["picture"]["steps"] == [NONE] and run["tiles"] == 0
    done = narcli_(
        "video", *words, "--model", larp[0], "--tokenizer", larp[1], "--format", "gif", "-o", "b.gif"
    )
    assert done.exit_code == 0, done.output
    (run,) = data_of((here / "b_frontier.html").read_text("utf-8"))["runs"]
    assert len(run["picture"]["uris"]) == len(run["picture"]["steps"]) == run["steps"] and run["tiles"] == -1


def test_tiles_are_the_middle_of_blocks_of_a_code(tiny):
    model = narcli.load(tiny, dtype="float32")
    (result,) = model.images(207, seed=0, record=True)
    tiles = pages.code_tiles(model, [result.record])
    codes = {*result.record.codes.ravel().tolist(), *result.tokens.tolist()}
    assert set(tiles.codes) == codes and tiles.sheet.width == 2 * tiles.columns  # 8 pixels of 4 cells
    one, two, three, four = tiles.codes[:4]
    rows = [[one, one, two, two]] * 2 + [[three, three, four, four]] * 2
    (clip,) = model.decode(torch.tensor(rows).view(1, 16))
    for place, (left, upper) in enumerate([(1, 1), (5, 1), (1, 5), (5, 5)]):
        own = clip[0].crop((left, upper, left + 2, upper + 2))
        assert tiles.sheet.crop((2 * place, 0, 2 * place + 2, 2)).tobytes() == own.tobytes()


@pytest.mark.parametrize(("kind", "number", "most"), [("image", 207, 400_000), ("video", 5, 2_000_000)])
def test_pages_of_the_built_in_models_are_small(kind, number, most, here):
    done = narcli_(
        kind,
        "--class",
        number,
        "--seed",
        0,
        "--frontier",
        "html",
        "-o",
        f"a.{'png' if kind == 'image' else 'gif'}",
    )
    assert done.exit_code == 0, done.output
    assert (here / "a_frontier.html").stat().st_size < most


# --- a browser -----------------------------------------------------------------------------------


#: JavaScript: the canvases of the panes of a run, without those of legends.
PANES = "[...document.querySelectorAll('.run')[arguments[0]].querySelectorAll('.pane > canvas')]"


class Page:
    """A page in the browser."""

    def __init__(self, browser, path, **how):
        self.browser, self.run = browser, browser.run
        browser.open(path, **how)
        self.wait(
            "return document.images.length === 0 && document.querySelector('.of-cell')?.innerText.length > 0"
        )

    def wait(self, script, seconds=5):
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.02)

    def now(self, index=0):
        return self.run("return document.querySelectorAll('.now')[arguments[0]].innerText", index)

    def words(self, about, index=0):
        """The words about the cell or the pass of a run."""
        text = self.run(f"return document.querySelectorAll('.of-{about}')[arguments[0]].innerText", index)
        return " ".join(text.split())

    def cell(self, row, column, sizes, pane=0, run=0):
        """The place of a cell of a grid of one plane in the window."""
        left, top, width, height = self.run(
            f"const c = {PANES}[arguments[1]]; c.scrollIntoView({{block: 'center'}});"
            "const b = c.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]",
            run, pane,
        )  # fmt: skip
        side = min(width / sizes[1], height / sizes[0])
        return left + (column + 0.5) * side, top + (row + 0.5) * side

    def color(self, row, column, sizes, pane=0, run=0):
        """The colour of the middle of a cell."""
        return self.run(
            f"const c = {PANES}[arguments[1]], side = c.height / arguments[4], context = c.getContext('2d');"
            "const [x, y] = [arguments[3], arguments[2]].map((place) => (place + 0.5) * side);"
            "return [...context.getImageData(x, y, 1, 1).data].slice(0, 3)",
            run, pane, row, column, sizes[0],
        )  # fmt: skip

    def choose(self, label, value):
        self.run(
            "const s = document.querySelector(`select[aria-label='${arguments[0]}']`);"
            "s.value = arguments[1];"
            "s.dispatchEvent(new Event('change'))",
            label, value,
        )  # fmt: skip

    def fine(self):
        """Nothing was asked of a network, and nothing went wrong."""
        asked = self.browser.requests()
        assert asked and all(address.startswith(("file:", "data:")) for address in asked), asked
        assert [entry for entry in self.browser.log("browser") if entry["level"] == "SEVERE"] == []


@pytest.fixture
def open_page(browser, here):
    def open_(*runs, **how):
        (here / "page.html").write_text(viewer.page(runs), "utf-8")
        return Page(browser, here / "page.html", **how)

    return open_


def test_a_reader_steps_through_a_run_with_keys(open_page):
    page = open_page(made_run("nar", (16, 16)))
    assert page.now() == "pass 31 of 31 · 256 of 256 cells, 100 % · raster order: 256 passes"
    page.browser.press("Home")
    assert page.now().startswith("pass 1 of 31 · 1 of 256 cells")
    page.browser.press(*["Right"] * 12, "Left")
    assert page.now() == "pass 12 of 31 · 78 of 256 cells, 30.5 % · raster order: 78 passes"
    listed = " ".join(f"({row}, {11 - row})" for row in range(12))
    assert f"Pass 12 decodes 12 cells (row, column), counted from 0 {listed}" in page.words("pass")
    assert (
        page.color(3, 8, (16, 16))
        == [255, 209, 102]
        != page.color(3, 7, (16, 16))
        != page.color(3, 9, (16, 16))
    )
    page.browser.press("End", " ")
    page.wait("return document.querySelector('.now').innerText.startsWith('pass 3 ')")
    page.browser.press(" ")
    here = page.now()
    time.sleep(0.3)
    assert page.now() == here
    page.fine()


def test_hovering_says_what_a_cell_was_predicted_from_and_a_click_keeps_it(open_page):
    run = made_run("nar", (16, 16))
    page = open_page(run)
    page.browser.point(*page.cell(6, 7, (16, 16)))
    said = page.words("cell")
    assert said.startswith("Cell (6, 7) Decoded in pass 14 of 31. Cell 103 in raster order, counted from 0.")
    assert "Predicted from (6, 6), by the head right (5, 7), by the head down It sees all 91 cells" in said
    record = run.record
    assert (
        f"token {record['tokens'][103]} probability" in said
        and f"entropy {record['entropy'][103]:.2f} bits" in said
    )
    assert f"disagreement {record['disagreement'][103]:.2f} bits" in said or np.isnan(
        record["disagreement"][103]
    )
    page.browser.point(*page.cell(6, 7, (16, 16)), click=True)
    page.browser.point(*page.cell(2, 2, (16, 16)))
    assert page.words("cell").startswith("Cell (6, 7)")
    page.browser.press("Escape")
    page.browser.point(*page.cell(2, 2, (16, 16), pane=2))
    assert page.words("cell").startswith("Cell (2, 2)")
    page.fine()


def test_cells_are_reached_by_keys_alone(open_page):
    page = open_page(made_run("nar", (4, 4)))
    page.run("document.querySelector('.pane > canvas').focus()")
    page.browser.press("Right", "Right", "Down")
    assert page.words("cell").startswith("Cell (1, 1)")
    assert page.now().startswith("pass 7 of 7")


def test_maps_show_numbers_on_one_ramp_and_the_least_sure_cell_is_named(open_page):
    run = made_run("nar", (16, 16))
    page, record = open_page(run), run.record
    least = int(record["entropy"].argmax())
    row, column = divmod(least, 16)
    assert (
        f"Least sure ({row}, {column}) {record['entropy'].max():.2f} bits in pass {row + column + 1}"
        in page.words("pass")
    )
    for name in ("entropy", "probability", "rank", "disagreement", "pass"):
        page.choose("map", name)
        assert page.run("return document.querySelectorAll('.pane figcaption b')[2].innerText").startswith(
            name
        )
    page.choose("map", "entropy")
    assert page.color(row, column, (16, 16), pane=2) == list(bytes.fromhex(hexadecimal(ramp(1))[1:]))
    page.run("[...document.querySelectorAll('button.link')][0].click()")
    assert page.words("cell").startswith(f"Cell ({row}, {column})")
    page.browser.press("Escape", "Home")
    far = page.color(15, 14, (16, 16), pane=2)
    page.browser.press("End")
    assert far != page.color(15, 14, (16, 16), pane=2)  # hidden until it is decoded
    page.fine()


def slide(page, at):
    page.run(
        "const s = document.querySelector('input'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'))",
        at,
    )


def test_two_runs_are_linked_by_share_or_by_passes(open_page):
    page = open_page(made_run("nar", (16, 16)), made_run("raster", (16, 16)))
    slide(page, 77)
    assert page.now(0).startswith("pass 12 of 31 · 78 of 256")
    assert page.now(1).startswith("pass 78 of 256 · 78 of 256")
    assert page.browser.text(".where") == "Passes for 30.5 % of the cells: nar 12 · raster 78"
    assert page.browser.text(".measure") == "30.5 % of the cells"
    page.choose("linked by", "passes")
    assert page.browser.text(".measure") == "pass 78 of 256"
    assert page.now(0).startswith("pass 31 of 31") and page.now(1).startswith("pass 78 of 256")
    slide(page, 11)
    assert page.browser.text(".where") == "Cells after 12 passes: nar 78 (30.5 %) · raster 12 (4.7 %)"
    page.browser.press("End")
    page.browser.point(*page.cell(6, 7, (16, 16)))
    assert page.words("cell", 1).startswith("Cell (6, 7) Decoded in pass 104")
    assert "Predicted from (6, 6) It sees all 103 cells" in page.words("cell", 1)
    page.fine()


def test_slider_line_and_panels_agree_on_the_share(open_page):
    orders = [drawn(name, (8, 8)) for name in ("nar", "mar:9", "maskgit:5")]
    page = open_page(*(viewer.Shown(order, order.name) for order in orders))
    done = [np.cumsum([len(cells) for cells in order.steps]) for order in orders]
    shares = sorted({*np.concatenate(done).tolist()})
    page.browser.press("Home")
    for share in shares:
        passes = [int(np.searchsorted(each, share)) + 1 for each in done]  # the first that reach it
        line = " · ".join(f"{order.name} {at}" for order, at in zip(orders, passes, strict=True))
        part = page.browser.text(".measure").removesuffix(" of the cells")
        assert float(part.removesuffix(" %")) == pytest.approx(100 * share / 64, abs=0.051)
        assert page.browser.text(".where") == f"Passes for {part} of the cells: {line}"
        for index, (at, order) in enumerate(zip(passes, orders, strict=True)):
            assert page.now(index).startswith(f"pass {at} of {len(order.steps)} ")
        page.browser.press("Right")  # the next share at which an order ends a pass
    assert page.run("const s = document.querySelector('input'); return s.value === s.max")
    assert page.run("return document.querySelectorAll('.pane').length") == 3  # no map that repeats the order
    page.fine()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mar:4", "a learned token in its place It sees all"),
        ("maskgit:4", "a learned token in its place It sees all"),
        ("sjd", "the cell before it in raster order, which may be a draft"),
    ],
)
def test_orders_that_are_only_drawn_say_what_a_cell_sees(open_page, name, said):
    order = drawn(name, (4, 4))
    page, (cell, *_) = open_page(viewer.Shown(order, name)), order.steps[-1]
    page.browser.point(*page.cell(*divmod(cell, 4), (4, 4)))
    assert f"Predicted from {said}" in page.words("cell") and "alone" not in page.words("cell")
    second = named("nar", (4, 4)).steps[1][0]
    page = open_page(made_run("nar", (4, 4)))
    page.browser.point(*page.cell(*divmod(second, 4), (4, 4)))
    assert "It sees the one cell of the passes before." in page.words("cell")


def test_the_page_keeps_its_height_under_the_mouse(open_page):
    page = open_page(made_run("nar", (16, 16)), made_run("zipar:4", (16, 16)))
    heights = []
    for row, column in [(0, 0), (6, 7), (15, 15), (8, 0), (1, 14)]:
        page.browser.point(1, 1)
        heights.append(page.run("return document.documentElement.scrollHeight"))
        page.browser.point(*page.cell(row, column, (16, 16)))
        assert page.words("cell").startswith(f"Cell ({row}, {column})")
        heights.append(page.run("return document.documentElement.scrollHeight"))
    assert len({*heights}) == 1, heights


@pytest.mark.parametrize(
    ("name", "sizes", "cell", "words"),
    [
        ("zipar:3", (4, 8), (2, 0), "(0, 7), a substitute at the place of (1, 7), which was empty"),
        ("zipar:3", (4, 8), (2, 0), "Empty places that it attends to: (1, 3) to (1, 6)"),
        ("par:4", (4, 4), (0, 3), "a learned vector, number 0, in place of a cell"),
        ("par:4", (4, 4), (0, 1), "(2, 2), of another region"),
        ("par:4", (4, 4), (1, 3), "(1, 2), the last cell of its region"),
        ("raster", (4, 4), (0, 0), "Predicted from the class or prompt alone"),
    ],
)
def test_every_order_says_what_a_cell_saw(open_page, name, sizes, cell, words):
    page = open_page(made_run(name, sizes))
    page.browser.point(*page.cell(*cell, sizes))
    assert words in page.words("cell"), page.words("cell")
    page.fine()


def test_scales_stand_side_by_side_and_a_cell_names_the_coarser_ones(open_page, here):
    page = open_page(made_run(VAR, (4, 4)))
    assert page.now() == "pass 4 of 4 · 30 of 30 cells, 100 % · raster order: 16 passes"
    page.run("document.querySelector('.pane > canvas').focus()")
    page.browser.press("Right", "Right", "Down")  # 1x1, then 2x2 from its corner
    assert page.words("cell").startswith("Cell 2×2 (1, 0)"), page.words("cell")
    assert "the scales before, summed: 1×1 (0, 0)" in page.words("cell")
    page.fine()


def test_clips_have_slices_and_a_cube_that_turns(open_page):
    page = open_page(made_run("nar", (2, 4, 4), frames=4))
    assert page.run("return [...document.querySelectorAll('.pane figcaption b')].map(e => e.innerText)") == [
        "order: nar", "picture so far", "entropy, bits", "time, row, column",
    ]  # fmt: skip
    shot = "const c = document.querySelector('.cube canvas'); return c.toDataURL()"
    before = page.run(shot)
    page.run("document.querySelector('.cube canvas').focus()")
    page.browser.press("Right")
    assert page.run(shot) != before and page.now().startswith("pass 8 of 8")
    page.fine()


def test_hostile_words_are_shown_and_do_nothing(open_page, tiny, tiny_text, here, browser):
    run = made_run("nar", (4, 4), title=HOSTILE)
    run.facts["model"] = HOSTILE
    page = open_page(run)
    title = "return document.querySelector('h2').textContent"
    assert page.run("return window.hacked === undefined && document.images.length === 0")
    assert page.run(title) == HOSTILE
    assert HOSTILE in page.run("return document.querySelector('.facts').textContent")
    page.fine()
    prompt = 'a red apple & "</script><script>window.hacked = 1</script> <b>bold</b>'
    classes = save_model(
        here / "named",
        transformer=small_transformer((4, 4), 1),
        tokenizer=load_tokenizer(tiny),
        classes=[CLASS],
    )
    for words, said in (
        (("--prompt", prompt, "--model", tiny_text), "<script>window.hacked = 1</script>"),
        (("--class", 0, "--model", classes), CLASS),
    ):
        done = narcli_("image", *words, "--seed", 0, "--frontier", "html", "--overwrite", "-o", "p.png")
        assert done.exit_code == 0, done.output
        page = Page(browser, here / "p_frontier.html")
        assert page.run("return window.hacked === undefined") and said in page.run(title)
        page.fine()


def test_nothing_but_the_pages_own_script_runs_and_nothing_is_fetched(open_page):
    page = open_page(made_run("nar", (4, 4)))
    page.run(
        "for (const [tag, name, value] of arguments[0]) {"
        "  const made = document.createElement(tag); made[name] = value; document.body.append(made); }",
        [
            ("script", "textContent", "window.hacked = 3"),
            ("script", "src", "https://example.invalid/a.js"),
            ("img", "src", "https://example.invalid/a.png"),
            ("iframe", "src", "https://example.invalid/"),
        ],
    )
    refused = page.run("return fetch('https://example.invalid/').then(() => 'fetched', () => 'refused')")
    assert refused == "refused" and page.run("return window.hacked === undefined")
    asked = page.browser.requests()
    assert not [address for address in asked if not address.startswith(("file:", "data:"))]
    assert (
        len([entry for entry in page.browser.log("browser") if "Content Security Policy" in entry["message"]])
        >= 3
    )


def test_runs_stand_beside_one_another_with_panes_of_one_size(open_page):
    alone = viewer.Shown(named("nar", (16, 16)), "an order alone")
    page = open_page(made_run("nar", (16, 16)), made_run("raster", (8, 8)), alone, width=1240)
    boxes = page.run(
        "return [...document.querySelectorAll('.run')].map(run => [run.getBoundingClientRect().top,"
        "  ...[...run.querySelectorAll('.pane > canvas')].slice(0, 2).map(c => c.offsetWidth)])"
    )
    assert [len(box) for box in boxes] == [3, 3, 2] and len({box[0] for box in boxes}) == 1
    assert len({width for _, *widths in boxes for width in widths}) == 1
    page.browser.point(*page.cell(6, 7, (16, 16)))
    for name in ("rank", "entropy", "disagreement", "head right"):
        title = page.run(
            "return [...document.querySelectorAll('dt')].find(d => d.innerText === arguments[0]).title", name
        )
        assert len(title) > 20, name
    page.fine()


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [1400, 390])
def test_pages_fit_large_and_small_windows_in_both_themes(open_page, scheme, width):
    page = open_page(
        made_run("nar", (16, 16)), made_run("nar", (2, 8, 8), frames=4), width=width, scheme=scheme
    )
    assert page.run("return document.documentElement.scrollWidth") <= width
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(15, 18, 24)") == (scheme == "dark")
    page.run("[...document.querySelectorAll('button')].find(b => b.ariaLabel === 'light or dark').click()")
    assert page.run("return getComputedStyle(document.body).backgroundColor") != ground
    page.fine()


def test_a_tap_chooses_a_cell_and_shows_what_it_says(open_page):
    page = open_page(made_run("nar", (16, 16)), width=390, height=844)
    page.browser.tap(*page.cell(6, 7, (16, 16)))
    assert page.words("cell").startswith("Cell (6, 7)")
    words, pane = page.run(
        "return ['.of-cell ul', '.pane > canvas'].map(each => {"
        "  const box = document.querySelector(each).getBoundingClientRect(); return [box.top, box.bottom]; })"
    )
    row = pane[0] + (pane[1] - pane[0]) * 6 / 16  # the cell that was tapped
    assert words[1] <= 844 and row >= page.run("return document.querySelector('.bar').offsetHeight")


def test_a_tap_on_a_second_run_leaves_it_in_place(open_page):
    page = open_page(made_run("nar", (16, 16)), made_run("raster", (16, 16)), width=390, height=800)
    assert page.run("return matchMedia('(pointer: coarse)').matches")
    page.run("scrollTo(0, 0)")
    x, y = page.cell(6, 7, (16, 16), run=1)
    top = f"return {PANES}[0].getBoundingClientRect().top"
    before, height = page.run(top, 1), page.run("return document.querySelector('.of-cell').offsetHeight")
    page.browser.tap(x, y)
    assert page.words("cell", 1).startswith("Cell (6, 7)") and page.words("cell").startswith("Cell (6, 7)")
    assert page.run("return document.querySelector('.of-cell').offsetHeight") > height + 100  # of the first
    moved = before - page.run(top, 1)
    row = page.run(top, 1) + page.run(f"return {PANES}[0].offsetHeight", 1) * 6 / 16  # the cell is still seen
    assert moved >= 0 and row >= page.run("return document.querySelector('.bar').offsetHeight")
    page.browser.tap(x, y - moved)
    assert abs(page.run(top, 1) - (before - moved)) < 1 and page.words("cell", 1).startswith("Hover")
