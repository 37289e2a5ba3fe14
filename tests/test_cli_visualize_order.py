"""`narcli visualize-order` and the frame that every command lives in."""

import copy
import csv
import fcntl
import itertools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyte
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import narcli
from narcli import cli
from narcli.cli import app, console, visualize_order
from narcli.errors import CheckpointError, DeclinedError, HubError, MemoryLimitError, NarError, UsageError
from narcli.media.readers import read_metadata
from narcli.order import Order, named, parse_grid
from narcli.viz.style import EMPTY, FRONTIER, caption, luminance

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(narcli.__file__).parents[1])}
COMMAND = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'narcli'; from narcli.cli import main; sys.exit(main())",
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(app, ["visualize-order", *arguments])


def narcli_process(*arguments, **options):
    options = {"capture_output": True, "text": True, "env": ENVIRONMENT, "check": False} | options
    return subprocess.run([*COMMAND, *arguments], **options)


# --- text ----------------------------------------------------------------------------------------


def test_piped_output_is_plain_text_that_compares_with_raster_order():
    result = narcli_process("visualize-order", env=ENVIRONMENT | {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"})
    assert result.returncode == 0 and result.stderr == ""
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    assert lines[0] == "16x16 grid: 31 steps instead of 256 in raster order, up to 16 cells in parallel"
    assert lines[2].split() == [str(n) for n in range(1, 17)]
    assert lines[17].split() == [str(n) for n in range(16, 32)]
    assert lines[19 + 11] == "step 12/31 · 12 cells in parallel · 78/256 done"
    assert lines[-1] == "step 31/31 · 1 cell in parallel · 256/256 done"


def test_a_grid_with_time_prints_its_slices():
    result = invoke("--grid", "2x2x3")
    assert result.stdout.split("step 1/5")[0] == (
        "2x2x3 grid: 5 steps instead of 12 in raster order, up to 4 cells in parallel\n"
        "\nt = 0\n1 2 3\n2 3 4\n\nt = 1\n2 3 4\n3 4 5\n\n"
    )


def test_json_is_one_document_with_steps_cells_and_predecessors():
    document = json.loads(invoke("--grid", "2x2", "--json").stdout)
    assert document["grid"] == [2, 2]
    assert (document["steps"], document["raster_steps"], document["widest_step"]) == (3, 4, 2)
    assert document["cells"][3] == {
        "step": 3,
        "cell": 3,
        "coordinates": [1, 1],
        "predecessors": [{"cell": 2, "head": "right"}, {"cell": 1, "head": "down"}],
    }


def test_raster_order_and_scales_print_no_number_without_news():
    assert invoke("--order", "raster", "--grid", "2x3").stdout == (
        "2x3 grid, raster: 6 steps, one cell at a time\n\n1 2 3\n4 5 6\n"
    )
    first, blank, *steps = invoke("--order", "var").stdout.splitlines()
    assert first.startswith("16x16 grid, var: 10 steps instead of 256 in raster order") and not blank
    assert len(steps) == 10 and steps[-1] == "step 10/10 · 16x16 cells in parallel · 680/680 done"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--order", "zipar:16"], "window is 16 on the grid 16x16, expected 2 to 15"),
        (["--order", "par:5"], "16x16 cannot be cut into 5 regions"),
        (["--order", "var", "--grid", "10x10"], "no scales up to the grid 10x10"),
        (["--order", "zipar:8", "--grid", "4x16x16"], "ZipAR does not decode the grid 4x16x16"),
        (["--order", "zipar"], "no order 'zipar'"),
        (["--grid", "16by16"], "not a grid"),
        (["--grid", "1000000x2"], "too large to show"),
        (["--grid", "4096"], "too large to show"),
        (["--output", "x.webp"], "ends in '.webp'"),
        (["--output", "no/x.png"], "folder no does not exist"),
        (["--overwrite"], "needs a file"),
        (["--theme", "light"], "--theme needs a file"),
        (["--order", "nar,raster", "-o", "x.csv"], "is a table of one order, and 2 are given"),
        (["--order", "nar,nar"], "'nar' is given twice"),
        (["--order", "nar", "--order", "raster,nar"], "'nar' is given twice"),
        (["--order", "nar,,raster"], "no order ''"),
        (["--order", ",".join(f"zipar:{n}" for n in range(2, 20))], "There are 18 orders, expected 1 to 16"),
        (["--order", "nar,par:16", "--grid", "4x16x16"], "4x16x16 cannot be cut into 16 regions"),
        (["--order", "nar,mar", "--grid", "4x16x16"], "MAR does not decode the grid 4x16x16"),
        (["--order", "maskgit:257"], "in 257 steps, expected 1 to 256"),
        (["--order", "spiral"], "no order 'spiral'"),
        (["--seed", "3"], "--seed is for mar, maskgit and sjd"),
        (["--order", "nar,raster", "--grid", "500x500"], "too large to show"),
    ],
)
def test_misuse_exits_2_and_says_what_to_do(here, arguments, words):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    message, hint = result.stderr.splitlines()
    assert message.startswith("error: ") and words in message
    assert hint.startswith("  ")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_are_those_of_numpy(seed):
    result = invoke("--order", "mar", "--seed", seed)
    assert result.exit_code == 2
    assert result.stderr == f"error: --seed is {seed}; seeds go from 0 to 4294967295.\n"


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["16x16", "2x6x4", "9"])
@pytest.mark.parametrize("suffix", ["png", "gif", "mp4"])
def test_pictures_are_written_with_their_settings(grid, suffix):
    result = invoke("--grid", grid, "--output", f"x.{suffix}")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"x.{suffix}\n"
    assert "in raster order" in result.stderr
    metadata = read_metadata(Path(f"x.{suffix}"))
    assert metadata["command"] == "visualize-order"
    assert metadata["grid"] == [int(n) for n in grid.split("x")]


def test_the_gif_has_a_frame_a_step():
    invoke("--grid", "4x6", "-o", "x.gif")
    with Image.open("x.gif") as gif:
        assert gif.n_frames == 9 + 1, "and one without anything bright"
        gif.seek(9)
        assert FRONTIER not in {color for _, color in gif.convert("RGB").getcolors(2**16)}
        assert gif.info["duration"] == 2000


def test_data_is_written_as_json_and_csv():
    assert invoke("--grid", "2x3x4", "-o", "x.json").exit_code == 0
    assert invoke("--grid", "2x3x4", "-o", "x.csv").exit_code == 0
    cells = json.loads(Path("x.json").read_text())["cells"]
    with Path("x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(cells) == 24
    for row, cell in zip(rows, cells, strict=True):
        assert (int(row["step"]), int(row["cell"])) == (cell["step"], cell["cell"])
        assert [int(row[axis]) for axis in "tyx"] == cell["coordinates"]
        heads = {p["head"]: str(p["cell"]) for p in cell["predecessors"]}
        assert {h: row[h] for h in ("right", "down", "back") if row[h]} == heads


def test_data_of_scales_name_the_panel():
    assert invoke("--order", "var", "-o", "x.csv").exit_code == 0
    lines = Path("x.csv").read_text().splitlines()
    assert (lines[0], lines[6], lines[-1]) == (
        "step,cell,panel,y,x,right", "3,5,2,0,0,", "10,679,9,15,15,"
    )  # fmt: skip
    document = json.loads(invoke("--order", "var", "--json").stdout)
    assert document["panels"][4] == [5, 5] and len(document["cells"]) == 680
    assert (document["order"], document["steps"], document["raster_steps"]) == ("var", 10, 256)


@pytest.mark.parametrize("order", ["raster", "zipar:4", "par:4", "var", "mar:5", "sjd"])
@pytest.mark.parametrize("suffix", ["png", "gif", "mp4"])
def test_pictures_of_every_order_are_made_again(order, suffix):
    grid = "16x16" if order == "var" else "8x8"
    assert invoke("--order", order, "--grid", grid, "-o", f"x.{suffix}").exit_code == 0
    assert read_metadata(Path(f"x.{suffix}"))["order"] == order
    result = CliRunner().invoke(app, ["rerun", f"x.{suffix}"])
    name = f"{order.replace(':', '-')}-order_{grid}.{suffix}"
    assert result.stdout == f"{name}\n", result.stderr
    assert Path(name).read_bytes() == Path(f"x.{suffix}").read_bytes()


SEVERAL = "nar,raster,zipar:8,par:4,par:16,var,mar,maskgit,sjd"


@pytest.mark.parametrize("suffix", ["png", "gif", "mp4"])
def test_pictures_of_several_orders_are_made_again_with_their_seed_and_theme(suffix):
    options = [
        "--order",
        "nar,raster",
        "--order",
        "maskgit",
        "--grid",
        "6x8",
        "--seed",
        "3",
        "--theme",
        "light",
    ]
    result = invoke(*options, "-o", f"x.{suffix}")
    assert result.stdout == f"x.{suffix}\n", result.stderr
    assert result.stderr.splitlines() == [
        "nar: 13 passes, up to 6 cells", "raster: 48 passes, one cell each",
        "maskgit (illustrative, seed 3): 8 passes, up to 9 cells",
    ]  # fmt: skip
    about = read_metadata(Path(f"x.{suffix}"))
    assert (about["orders"], about["seed"], about["theme"]) == (["nar", "raster", "maskgit"], 3, "light")
    assert "order" not in about
    result = CliRunner().invoke(app, ["rerun", f"x.{suffix}"])
    assert result.stdout == f"orders_6x8.{suffix}\n", result.stderr
    assert Path(f"orders_6x8.{suffix}").read_bytes() == Path(f"x.{suffix}").read_bytes()
    dark = CliRunner().invoke(app, ["rerun", f"x.{suffix}", "--theme", "dark", "-o", f"y.{suffix}", "--json"])
    assert json.loads(dark.stdout)["runs"][0]["orders"] == about["orders"], dark.stderr
    assert "theme" not in read_metadata(Path(f"y.{suffix}"))
    Path("x.json").write_text(dark.stdout)
    again = CliRunner().invoke(app, ["rerun", "x.json", "-o", f"z.{suffix}"])
    assert again.stdout == f"z.{suffix}\n", again.stderr
    assert Path(f"z.{suffix}").read_bytes() == Path(f"y.{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png", "json"])
def test_all_orders_are_drawn_together(suffix):
    assert invoke("--order", SEVERAL, "-o", f"x.{suffix}").exit_code == 0
    data = Path(f"x.{suffix}").read_bytes()
    assert data.startswith({"svg": b"<svg ", "pdf": b"%PDF-1.4", "png": b"\x89PNG", "json": b"{"}[suffix])
    if suffix == "json":
        document = json.loads(data)
        each = document["schedules"]
        assert [one["order"] for one in each] == document["orders"] == SEVERAL.split(",")
        assert [one["steps"] for one in each][:8] == [31, 256, 144, 67, 31, 10, 64, 8]
        assert [one.get("illustrative") for one in each] == [None] * 6 + [False, True, True]
        assert all(len(one["cells"]) == (680 if one["order"] == "var" else 256) for one in each)


def test_several_orders_are_a_table_in_a_terminal_and_in_a_pipe():
    rows = [
        "nar     31 passes, up to 16 cells",
        "raster  256 passes, one cell each",
        "mar     64 passes, up to 7 cells   seed 0",
    ]
    assert invoke("--order", "nar,raster,mar").stdout.splitlines() == rows
    output, code = in_terminal("visualize-order", "--order", "nar,raster,mar")
    assert code == 0 and output.splitlines() == rows
    document = json.loads(invoke("--order", "nar,mar", "--seed", "7", "--json").stdout)
    assert document["grid"] == [16, 16] and document["schedules"][1]["seed"] == document["seed"] == 7


def test_a_sketch_is_shown_alone_as_any_order():
    first, *rest = invoke("--order", "mar", "--grid", "4x4", "--seed", "2").stdout.splitlines()
    assert first == "4x4 grid, mar (seed 2): 16 steps instead of 16 in raster order, up to 1 cell in parallel"
    assert [int(n) - 1 for line in rest[1:5] for n in line.split()][:4] == [12, 9, 5, 10]
    assert invoke("--order", "sjd", "-o", "x.csv").exit_code == 0
    assert Path("x.csv").read_text().splitlines()[:2] == ["step,cell,y,x", "1,0,0,0"]


def test_a_few_steps_are_shown_long_enough_to_be_seen():
    for name, milliseconds in (("maskgit", 400), ("mar", 90), ("nar,raster", 90)):
        invoke("--order", name, "-o", "x.gif", "--overwrite")
        with Image.open("x.gif") as gif:
            assert gif.info["duration"] == milliseconds


def test_scales_are_shown_long_enough_to_be_seen():
    invoke("--order", "var", "-o", "x.gif")
    with Image.open("x.gif") as gif:
        assert gif.n_frames == 11 and gif.info["duration"] == 400


def test_a_drawing_is_written():
    assert invoke("-o", "x.svg").exit_code == 0
    assert Path("x.svg").read_text().startswith("<svg ")


def test_files_are_kept_unless_overwriting():
    Path("x.csv").write_text("mine")
    assert invoke("-o", "x.csv").stdout == "x_1.csv\n"
    assert Path("x.csv").read_text() == "mine"
    assert invoke("-o", "x.csv", "--overwrite").stdout == "x.csv\n"
    assert Path("x.csv").read_text().startswith("step,cell,y,x,right,down\n")


def test_a_folder_gets_a_default_name_and_quiet_prints_the_path_only():
    result = invoke("-o", "new/", "--quiet")
    assert (result.stdout, result.stderr) == ("new/nar-order_16x16.png\n", "")


def test_json_with_a_file_names_it():
    document = json.loads(invoke("-o", "x.png", "--json").stdout)
    assert document["file"] == "x.png" and "cells" not in document


# --- a terminal ----------------------------------------------------------------------------------


def in_terminal(*arguments, lines=24, columns=80, environment=None, interrupt_after=None):
    """Run narcli in a pseudo-terminal; its output and exit code."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    base = {k: v for k, v in ENVIRONMENT.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    env = base | {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | (environment or {})
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=env,
        start_new_session=True,
    )
    os.close(follower)
    output, stop = b"", time.monotonic() + 30
    while time.monotonic() < stop:
        if select.select([leader], [], [], 0.1)[0]:
            try:
                piece = os.read(leader, 65536)
            except OSError:
                break
            if not piece:
                break
            output += piece
        if interrupt_after and interrupt_after in output:
            process.send_signal(signal.SIGINT)
            interrupt_after = None
    os.close(leader)
    return output.decode(), process.wait(timeout=10)


def test_a_terminal_shows_an_animation_and_gets_its_cursor_back():
    output, code = in_terminal("visualize-order", "--grid", "4x4")
    assert code == 0
    for s in range(7):
        assert caption(Order((4, 4)), s) in output
    assert output.count("\x1b8") == 7, "each frame is drawn over the one before"
    assert output.index("\x1b[?25l") < output.index("\x1b[?25h")
    assert "48;2;255;209;102" in output
    assert output.endswith("7 steps instead of 16 in raster order, up to 4 cells in parallel\r\n")


def test_ctrl_c_ends_the_animation_cleanly():
    output, code = in_terminal("visualize-order", interrupt_after=b"step 3/31")
    assert code == 130
    assert output.rstrip().endswith("\x1b[?25hInterrupted.")
    assert "Traceback" not in output


def test_no_color_and_quiet_are_honoured_in_a_terminal():
    output, _ = in_terminal("visualize-order", "--grid", "2x2", environment={"NO_COLOR": "1"})
    assert not re.search(r"\x1b\[[0-9;]*m", output)
    assert "++##" in output
    output, _ = in_terminal("visualize-order", "--grid", "2x2", "--quiet")
    assert "\x1b" not in output
    output, _ = in_terminal("visualize-order", "--grid", "2x2", environment={"TERM": "dumb"})
    assert "\x1b" not in output


@pytest.mark.parametrize("sizes", [(16, 16), (4, 16, 16), (24, 40), (100, 100), (500,), (16, 16, 16), (1, 1)])
@pytest.mark.parametrize("screen", [(80, 24), (200, 60), (20, 10)])
@pytest.mark.parametrize("color", [True, False])
def test_grids_of_any_size_fit_the_terminal(sizes, screen, color):
    columns, lines = screen
    order = Order(sizes)
    cells, (across, down), every = visualize_order._layout(order, columns - 1, lines - 4, color)
    assert max(map(len, cells)) * across <= columns - 1
    if len(sizes) < 3 or screen != (20, 10):  # sixteen panels do not fit ten lines
        assert -(-len(cells) // down) <= lines - 4
    if every == 1:
        shown = sorted(n for row in cells for n in row if n is not None)
        assert shown == sorted(zip(order.step_of, order.step_of, strict=True))
    for s in (0, len(order.steps) - 1):
        drawn = list(visualize_order._draw(cells, s, len(order.steps), across, down, color))
        widths = [len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in drawn]
        assert max(widths) <= columns - 1
        assert ("\x1b" in "".join(drawn)) == color


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("screen", [(80, 24), (200, 60), (60, 24)])
@pytest.mark.parametrize("name", ["raster", "zipar:8", "par:4", "par:16", "var"])
def test_every_order_is_drawn_in_a_terminal(name, screen, color):
    order = named(name, (32, 32))
    cells, (across, down), every = visualize_order._layout(order, screen[0] - 1, screen[1] - 4, color)
    assert max(map(len, cells)) * across < screen[0] and -(-len(cells) // down) <= screen[1] - 4
    squares = [square for row in cells for square in row if square is not None]
    assert len(squares) == sum((-(-rows // every)) * -(-columns // every) for rows, columns in order.panels)
    assert {min(first for first, _ in squares), max(last for _, last in squares)} == {0, len(order.steps) - 1}
    if not color:
        for s in range(0, len(order.steps), 50):
            drawn = "".join(visualize_order._draw(cells, s, len(order.steps), across, down, color))
            assert drawn.count("+") == across * sum(last < s for _, last in squares)
            assert drawn.count("#") == across * sum(first <= s <= last for first, last in squares)


def test_scales_stand_side_by_side_in_a_terminal_of_80_columns():
    cells, shape, every = visualize_order._layout(named("var", (16, 16)), 79, 20, True)
    assert (len(cells), len(cells[0]), shape, every) == (16, 77, (1, 2), 1)
    assert cells[0][:4] == [(0, 0), None, (1, 1), (1, 1)] and cells[15][-16:] == [(9, 9)] * 16
    assert cells[15][:-16] == [None] * 61


def xterm(index):
    """Colour of an index of the cube or the grays of terminals with 256 colours."""
    if index >= 232:
        return (8 + 10 * (index - 232),) * 3
    levels = (0, 95, 135, 175, 215, 255)
    return tuple(levels[(index - 16) // power % 6] for power in (36, 6, 1))


def test_the_ramp_of_256_colours_grows_lighter_and_is_told_from_all_else(monkeypatch):
    monkeypatch.delenv("COLORTERM", raising=False)
    for steps in (1, 2, 31, 256):
        ramp, empty, frontier = visualize_order._palette(steps)
        assert len(ramp) == steps and all(code.startswith("5;") for code in (*ramp, empty, frontier))
        light = [luminance(xterm(int(code[2:]))) for code in ramp]
        assert light == sorted(light) and len(set(ramp)) == min(steps, 9)
        assert all(b - a < 0.13 for a, b in itertools.pairwise(light) if steps > 9)
        blank, warm = (xterm(int(code[2:])) for code in (empty, frontier))
        for color in (xterm(int(code[2:])) for code in ramp):
            assert max(abs(a - b) for a, b in zip(color, blank, strict=True)) > 80
            assert max(abs(a - b) for a, b in zip(color, warm, strict=True)) > 80
    monkeypatch.setenv("COLORTERM", "truecolor")
    ramp, empty, frontier = visualize_order._palette(3)
    assert (ramp[0], empty) == ("2;86;44;139", f"2;{EMPTY[0]};{EMPTY[1]};{EMPTY[2]}")
    assert frontier == "2;255;209;102"


def test_a_terminal_of_256_colours_shows_its_ramp():
    output, code = in_terminal("visualize-order", "--grid", "4x4", environment={"COLORTERM": ""})
    assert code == 0 and "48;5;221m" in output and "48;5;54m" in output and "48;2" not in output


# --- the frame of all commands -------------------------------------------------------------------


def test_version_and_help():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"narcli {narcli.__version__}\n"
    for help_option in ("--help", "-h"):
        assert "visualize-order" in CliRunner().invoke(app, [help_option]).stdout


def test_close_names_are_suggested():
    result = CliRunner().invoke(app, ["visualise-order"])
    assert result.exit_code == 2 and "visualize-order" in result.stderr
    result = invoke("--gird", "4x4")
    assert result.exit_code == 2 and "--grid" in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["visualize-order"], ["visualize-order", "-o", "x.png"]])
def test_torch_is_never_imported(arguments):
    code = (
        f"import sys; sys.argv = ['narcli', *{arguments!r}]\n"
        "from narcli.cli import main\nassert main() == 0\n"
        "heavy = {'torch', 'huggingface_hub', 'transformers', 'rich'}\n"
        "light = {'numpy', 'PIL'} if 'x.png' not in sys.argv else set()\n"
        "print('IMPORTED', sorted((heavy | light) & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert result.stdout.endswith("IMPORTED []\n")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (NarError("It broke.", "Mend it."), 1, "error: It broke.\n  Mend it.\n"),
        (UsageError("Not so."), 2, "error: Not so.\n"),
        (HubError("No network."), 3, "error: No network.\n"),
        (CheckpointError("Bad\x1b[2J file."), 4, "error: Bad\ufffd[2J file.\n"),
        (MemoryLimitError("Too big."), 5, "error: Too big.\n"),
        (MemoryError(), 5, "error: Out of memory.\n"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB."), 5, "error: Out of memory.\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (BrokenPipeError(), 1, ""),
        (OSError(28, "No space left on device", "x"), 1, "error: No space left on device: x.\n"),
        (ZeroDivisionError("division by zero"), 1, "error: narcli failed unexpectedly: ZeroDivisionError"),
    ],
)
def test_the_error_table(error, code, words, capsys, monkeypatch):
    monkeypatch.delenv("NARCLI_DEBUG", raising=False)
    assert console.fail(error) == code
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert err.startswith(words) if words else err == ""


def test_an_unexpected_error_is_one_sentence_and_debug_shows_the_traceback(monkeypatch, capsys):
    def explode():
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(cli, "app", explode)
    monkeypatch.delenv("NARCLI_DEBUG", raising=False)
    assert cli.main() == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: boom" in err and "NARCLI_DEBUG=1" in err and "Traceback" not in err
    monkeypatch.setenv("NARCLI_DEBUG", "1")
    assert cli.main() == 1
    assert "Traceback" in capsys.readouterr().err


def test_errors_of_commands_in_groups_are_reported_too():
    group, outer = typer.Typer(), typer.Typer(cls=cli._Commands)

    @group.command("one")
    def one():
        raise HubError("No network.", "Plug it in.")

    @group.command("two")
    def two():
        raise KeyboardInterrupt

    outer.add_typer(group, name="group")
    result = CliRunner().invoke(outer, ["group", "one"])
    assert (result.exit_code, result.stderr) == (3, "error: No network.\n  Plug it in.\n")
    result = CliRunner().invoke(outer, ["group", "two"])
    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_a_reader_that_leaves_early_is_no_error_message():
    process = subprocess.Popen(
        [*COMMAND, "visualize-order", "--grid", "200x200"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout.readline().startswith(b"200x200")
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_a_full_standard_output_is_reported():
    with Path("/dev/full").open("w") as full:
        result = narcli_process("visualize-order", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr.startswith("error: No space left on device") and "Traceback" not in result.stderr


def test_an_ascii_terminal_gets_question_marks_not_an_error():
    result = narcli_process("visualize-order", env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert "step 1/31 ? 1 cell" in result.stdout


def test_progress_and_notes_stay_off_pipes(capsys):
    with console.Console().progress("decoding", 3) as advance:
        advance()
    console.Console().note("hello")
    console.Console(quiet=True).note("silence")
    console.Console(quiet=True).warn("careful")
    assert capsys.readouterr() == ("", "hello\nwarning: careful\n")


def test_columns_fold_on_a_terminal_only(monkeypatch, capsys):
    rows = [("nar", "a note of several words"), ("食べ物", "[b]x[/b] :dog:\x1b[2J")]
    console.Console().table(rows, ("NAME", "NOTE"))
    whole = [
        "NAME    NOTE",
        "nar     a note of several words",
        "食べ物  [b]x[/b] :dog:\N{REPLACEMENT CHARACTER}[2J",
    ]
    assert capsys.readouterr().out.splitlines() == whole
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setattr(console, "_columns", lambda stream: 20)
    console.Console().table(rows[:1])
    assert capsys.readouterr().out.splitlines() == ["nar  a note of", "     several words"]


def test_progress_draws_on_a_terminal_and_cleans_up(monkeypatch, capsys):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setenv("NO_COLOR", "1")
    with console.Console().progress("decoding", 2) as advance:
        advance()
        advance(note="done")
    err = capsys.readouterr().err
    assert "decoding" in err and "2/2 done" in err
    assert err.endswith("\r\x1b[K")


class Terminal(pyte.HistoryScreen):
    """Goes back to the saved place as often as asked, as terminals do; pyte forgets it the first time."""

    def restore_cursor(self):
        saved = [point._replace(cursor=copy.copy(point.cursor)) for point in self.savepoints[-1:]]
        super().restore_cursor()
        self.savepoints.extend(saved)


def screen_of(text, columns, lines=24):
    """The lines that a terminal of that size shows in the end, and those that scrolled out above."""
    screen = Terminal(columns, lines, history=1000)
    screen.set_mode(pyte.modes.LNM)
    pyte.Stream(screen).feed(text)
    above = ["".join(row[x].data for x in range(columns)) for row in screen.history.top]
    return [line.rstrip() for line in [*above, *screen.display]]


LABELS = [
    "decoding",
    "decoding the frontier of a long name " * 3,
    "食べ物の絵を描く" * 4,
    "red\x1b[2J\napple",
]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("columns", [60, 40, 20, 8, 2])
def test_progress_stays_on_one_line_and_leaves_none_behind(monkeypatch, capsys, label, columns):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setattr(console, "_columns", lambda stream: columns)
    monkeypatch.setattr(console.time, "monotonic", itertools.count().__next__)
    shown, written = [], ">\n"
    with console.Console().progress(label, 1200) as advance:
        for _ in range(30):
            advance(40, "steps")
            written += capsys.readouterr().err
            shown.append([line for line in screen_of(written, columns) if line])
    assert {len(lines) for lines in shown} <= {1, 2} and shown[-1][0] == ">"
    if columns >= 20:
        assert shown[-1][1].endswith(("1200/1200", "1200/1200 steps")) and shown[-1][1][0] == label[0]
    written += capsys.readouterr().err + "after\n"
    assert [line for line in screen_of(written, 60) if line] == [">", "after"]


@pytest.mark.parametrize("wraps", [True, False])
def test_progress_in_a_window_that_becomes_narrow_leaves_nothing_behind(monkeypatch, capsys, wraps):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setattr(console.time, "monotonic", itertools.count().__next__)
    columns = 60
    monkeypatch.setattr(console, "_columns", lambda stream: columns)
    screen = pyte.Screen(60, 10)
    stream = pyte.Stream(screen)
    stream.feed("before\r\n")
    with console.Console().progress("decoding the frontier", 9) as advance:
        advance(1, "steps")
        stream.feed(capsys.readouterr().err)
        columns, line = 20, screen.display[1]
        screen.resize(10, 20)
        if wraps:  # as many terminals do; the cursor stays with its letter
            column, row = screen.cursor.x, screen.cursor.y
            stream.feed(f"\r{line[:20]}\r\n{line[20:40]}\r\n{line[40:60]}\x1b[{row + 1};{column + 1}H")
        advance(1, "steps")
        stream.feed(capsys.readouterr().err)
        assert [text.rstrip() for text in screen.display if text.strip()] == ["before", "decoding the f… 2/9"]
    stream.feed(capsys.readouterr().err)
    assert [text.rstrip() for text in screen.display if text.strip()] == ["before"]


@pytest.mark.parametrize("color", [True, False])
@pytest.mark.parametrize("grid", ["16x16", "16x8x8", "300"])
@pytest.mark.parametrize("size", [(60, 24), (40, 12), (20, 8), (20, 3), (8, 4), (3, 2)])
def test_the_animation_leaves_one_picture_in_terminals_of_any_size(monkeypatch, capsys, size, grid, color):
    monkeypatch.setattr(visualize_order.shutil, "get_terminal_size", lambda: os.terminal_size(size))
    monkeypatch.setattr(visualize_order, "has_color", lambda stream: color)
    monkeypatch.setattr(visualize_order.time, "sleep", lambda seconds: None)
    visualize_order.animate(Order(parse_grid(grid)))
    written = capsys.readouterr().out
    lines = [line for line in screen_of(written, *size) if line]
    assert "".join(lines).count("step ") <= 1 and "".join(lines).count("Each square") <= 1
    if written:
        first = written.split("\n")[0] if written.startswith("Each square") else ""
        assert lines[-1].startswith("step ") and len(lines) - -(-len(first) // size[0]) <= size[1]
        assert written.endswith("\x1b[?7h\x1b[?25h")
    assert bool(written) or size[0] < 20 or size[1] < 12


@pytest.mark.parametrize("size", [(60, 24), (20, 8), (8, 3)])
def test_a_terminal_of_any_size_is_told_of_the_order_once(size):
    output, code = in_terminal("visualize-order", "--grid", "4x4", columns=size[0], lines=size[1])
    together = "".join(screen_of(output, *size))
    assert code == 0 and together.replace(" ", "").count("4x4grid:7stepsinstead") == 1
    assert together.count("step 7/7") == (size[1] > 4)


def commands_of(command):
    """The commands in a group and its groups, or the command alone."""
    parts = getattr(command, "commands", {}).values()
    return [each for part in parts for each in commands_of(part)] if parts else [command]


OPTIONS = [
    (command, option)
    for command in commands_of(typer.main.get_command(app))
    for option in command.params
    if option.param_type_name == "option" and not option.is_flag
]


def test_no_value_of_an_option_given_twice_is_lost():
    for command, option in OPTIONS:
        if not option.multiple:
            with pytest.raises(UsageError) as caught:
                command.make_context("narcli", [option.opts[0], "1", option.opts[-1], "1"])
            assert caught.value.message == f"{max(option.opts, key=len)} is given twice, and takes one value."


def test_all_lists_of_things_to_make_may_be_given_again():
    several = {option.opts[0] for _, option in OPTIONS if option.multiple}
    what = {"--class", "--prompt", "--frames-from", "--keep-cells", "--sweep", "--model", "--order"}
    assert several == what and len(OPTIONS) > 140


def test_a_switch_given_twice_is_given():
    assert invoke("--json", "--json", "--grid", "2x2").exit_code == 0
    result = invoke("-g", "2x2", "--grid", "3x3", "-g4x4")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --grid is given 3 times, and takes one value.\n  Leave out all but one.\n",
    )


def test_an_unknown_choice_is_one_sentence():
    result = CliRunner().invoke(app, ["image", "--class", "1", "--dtype", "fp16"])
    assert result.exit_code == 2 and "'fp16' is not one of" in result.stderr
    assert "Value error" not in result.stderr


def test_a_no_is_an_answer_and_no_error(capsys):
    assert console.fail(DeclinedError("Nothing was downloaded.")) == 1
    assert capsys.readouterr().err == "Nothing was downloaded.\n"
