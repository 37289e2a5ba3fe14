"""Sweeps of settings on one labelled sheet, and labels of contact sheets."""

import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import narcli
from conftest import MAIN, hold_at_most
from narcli import Recipe, pipeline
from narcli.cli import app
from narcli.errors import MemoryLimitError, UsageError
from narcli.hub.catalog import MODELS
from narcli.hub.sizes import networks_of
from narcli.media.metadata import lines
from narcli.media.readers import read_metadata
from narcli.memory import Files, estimate
from narcli.runs.events import Finished, Written
from narcli.runs.plan import Host
from narcli.runs.run import Loaded, budget, run
from narcli.settings import SamplingSettings
from narcli.settings.sweeps import MAX_SWEPT, SWEPT, parse_sweep, points_of, words_of
from narcli.viz.sheets import GAP, HEAD, LINE, enlarge, labelled_sheet, shorten
from narcli.viz.vector import text_width as _text_width
from test_cli_image import ENVIRONMENT, names

TWO = ("--sweep", "temperature=0.3,1.5", "--sweep", "cfg-scale=1,2,4")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(tiny):
    def invoke(*words, code=0, model=tiny):
        chosen = ["--model", str(model)] if model else []
        result = CliRunner().invoke(app, [*map(str, words), *chosen])
        assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
        return result

    return invoke


@pytest.fixture(scope="module")
def model(tiny):
    return narcli.load(tiny)


def alone(model, classes, seeds, **settings):
    """Results of a model that is asked for one setting."""
    return [each for id in classes for seed in seeds for each in model.images([id], seed=seed, **settings)]


def crop(sheet, x, y, size=256):
    return np.asarray(sheet.crop((x, y, x + size, y + size)))


# --- runs ----------------------------------------------------------------------------------------


def test_every_picture_of_a_sweep_is_that_of_its_settings_alone(command, model, here):
    document = json.loads(command("image", "--class", "207,cat", "--seed", 5, *TWO, "--json").stdout)
    name = "nar-image_c207-golden_retriever_s5_sweep.png"
    assert names(here) == [name] == document["files"]
    samples = document["samples"]
    points = list(product((0.3, 1.5), (1, 2, 4)))
    assert len(samples) == 12 and all("file" not in sample for sample in samples)
    with Image.open(name) as sheet:
        assert sheet.size == (GAP + 3 * (256 + GAP), GAP + 2 * (HEAD + 2 * (HEAD + LINE + 256 + GAP)))
        for number, (temperature, cfg_scale) in enumerate(points):
            settings = {"temperature": temperature, "cfg_scale": cfg_scale}
            for block, result in enumerate(alone(model, [207, 281], [5], **settings)):
                sample = samples[2 * number + block]
                assert sample["sampling"] == result.metadata["sampling"]
                assert sample["sampling"] | settings == sample["sampling"]
                assert sample["tokens_sha256"] == result.metadata["tokens_sha256"]
                assert (sample["class"]["id"], sample["seed"]) == ((207, 281)[block], 5)
                row, column = divmod(number, 3)
                y = GAP + HEAD + LINE + HEAD
                y += block * (HEAD + 2 * (HEAD + LINE + 256 + GAP)) + row * (HEAD + LINE + 256 + GAP)
                drawn = np.asarray(enlarge(result.image, 256 // result.image.width))
                assert (crop(sheet, GAP + column * (256 + GAP), y) == drawn).all()
    about = read_metadata(here / name)
    assert about["sweep"] == document["sweep"] == {"temperature": [0.3, 1.5], "cfg_scale": [1, 2, 4]}
    assert about["points"] == [sample["sampling"] for sample in samples[::2]]
    assert about["sampling"] == about["points"][0] == document["sampling"]
    assert about["samples_sha256"] == [sample["tokens_sha256"] for sample in samples]


def test_one_setting_has_the_samples_as_columns(command, model, here):
    command("image", "--class", "207,cat", "-n", 2, "--seed", 1, "--sweep", "top_k=1,40", "-o", "a.png")
    with Image.open("a.png") as sheet:
        assert sheet.size == (GAP + 4 * (256 + GAP), GAP + 2 * (HEAD + 2 * LINE + 256 + GAP))
        for row, top_k in enumerate((1, 40)):
            for column, result in enumerate(alone(model, [207, 281], [1, 2], top_k=top_k)):
                y = GAP + HEAD + 2 * LINE + row * (HEAD + 2 * LINE + 256 + GAP)
                drawn = np.asarray(enlarge(result.image, 256 // result.image.width))
                assert (crop(sheet, GAP + column * (256 + GAP), y) == drawn).all()


@pytest.mark.parametrize("source", ["a.png", "run.json"])
def test_a_sheet_and_its_document_make_the_same_sheet_again(command, here, source):
    made = command(
        "image", "--class", "207,cat", "-n", 2, "--seed", 5, *TWO, "--scale", 1, "-o", "a.png", "--json"
    )
    (here / "run.json").write_text(made.stdout)
    (here / "again").mkdir()
    again = command("rerun", source, "--verify", "-o", "again/a.png")
    assert again.stderr.count("the tokens are equal") == 24
    assert "cat, seed 6, temperature 1.5, cfg scale 4: the tokens are equal, all 16." in again.stderr
    assert names(here / "again") == ["a.png"]
    assert (here / "again" / "a.png").read_bytes() == (here / "a.png").read_bytes()


def test_prompts_are_swept_too(command, tiny_text, here):
    words = ("--prompt", "a red apple", "--prompt", "\u202ea\nblue\u0301 🍎", "--seed", 3)
    command("image", *words, "--sweep", "top-p=0.5,1", "-o", "a.png", model=tiny_text)
    again = command("rerun", "a.png", "--verify", "-o", "b.png", model=tiny_text)
    assert again.stderr.count("the tokens are equal") == 4
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()


def test_a_sweep_loads_one_model_and_counts_its_batches_as_one_run(tiny, here, monkeypatch):
    loaded, load = [], pipeline.load_networks
    monkeypatch.setattr(pipeline, "load_networks", lambda *a: loaded.append(1) or load(*a))
    recipe = Recipe(
        classes=207, num=3, seed=0, batch_size=2, model=str(tiny), output="a.png",
        sweep={"temperature": (0.3, 0.6), "top_k": (1, 2)},
    )  # fmt: skip
    events = list(run(recipe))
    assert loaded == [1] and type(events[0]) is Loaded and len(events[0].samples) == 12
    steps = [event for event in events if type(event).__name__ == "Progress"]
    assert [step.batch for step in steps] == [batch for batch in range(8) for _ in range(7)]
    assert {step.batches for step in steps} == {8}
    spent = [step.seconds["sample"] for step in steps]
    assert spent == sorted(spent) and events[-1].seconds["sample"] == spent[-1]
    assert [event.path for event in events if type(event) is Written] == [Path("a.png")]
    assert type(events[-1]) is Finished and len(events[-1].samples) == len(events[-1].documents) == 12


def test_a_batch_that_memory_does_not_hold_is_halved_once(tiny, here, monkeypatch):
    seen = hold_at_most(monkeypatch, 4, MemoryLimitError("full"))
    told = []
    host = Host(note=told.append)
    recipe = Recipe(classes=207, num=4, seed=0, model=str(tiny), sweep="temperature=0.3,0.6,0.9")
    steps = [event for event in run(recipe, host) if type(event).__name__ == "Progress"]
    assert len(told) == 1 and max(seen) == 8
    assert steps[-1].batch == steps[-1].batches - 1 == 5


def test_a_sweep_that_is_left_writes_nothing(tiny, here):
    events = run(Recipe(classes=207, model=str(tiny), sweep="temperature=0.3,0.6", output="out/"))
    for event in events:
        if type(event).__name__ == "Progress" and event.batch == 1:
            break
    events.close()
    assert not any(path.is_file() for path in here.rglob("*"))


def test_a_budget_counts_all_pictures(command, tiny):
    points = {"temperature": (0.5, 1), "top_k": (1, 2, 3, 4)}
    spending = budget(Recipe(classes=207, num=2, seed=1, model=str(tiny), sweep=points, cfg_scale=1))
    assert spending.document()["samples_in_all"] == 16 and not spending.guided
    assert spending.files == Files(16, sheet=True, labels=True)
    assert budget(Recipe(classes=207, model=str(tiny), sweep="cfg-scale=1,3")).guided
    dry = command("image", "--class", 207, "--seed", 1, *TWO, "--dry-run").stdout
    assert re.search(r"^samples +6$", dry, re.M)
    assert dry.endswith("nar-image_c207-golden_retriever_s1_sweep.png\n") and dry.count(".png") == 1


def test_labels_count_as_memory():
    networks = networks_of(MODELS["nar-b-256"])
    plain, labelled = (
        estimate(networks, torch.float32, 4, files=Files(40, sheet=True, labels=labels)).writing
        for labels in (False, True)
    )
    assert 1.2 * plain < labelled < 1.5 * plain


def test_a_process_sweeps_and_makes_the_sheet_again(tiny, here):
    def process(*words):
        return subprocess.run(
            [sys.executable, "-c", MAIN, *map(str, words), "--model", tiny],
            capture_output=True, text=True, env=ENVIRONMENT, timeout=240,
        )  # fmt: skip

    made = process("image", "--class", "dog", "--seed", 2, *TWO, "--scale", 1, "-o", "dogs.png")
    assert (made.returncode, made.stdout) == (0, "dogs.png\n"), made.stderr
    assert made.stderr.startswith("6 pictures, seed 2: 7 steps instead of 16, ")
    again = process("rerun", "dogs.png", "--verify", "--overwrite", "-o", "again.png")
    assert (again.returncode, again.stdout) == (0, "again.png\n"), again.stderr
    assert (here / "dogs.png").read_bytes() == (here / "again.png").read_bytes()
    assert process("image", "--class", "dog", "--sweep", "heat=1").returncode == 2


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sweep temperature", "--sweep is 'temperature', expected a setting and its values, such as temp"),
        ("--sweep temprature=1", "--sweep names 'temprature', expected one of cfg_scale, cfg_interval, "),
        ("--sweep seed=1,2", "--sweep names 'seed', expected one of"),
        ("--sweep temperature=0.3,warm", "--sweep gives temperature 'warm', expected a number."),
        ("--sweep temperature=", "--sweep gives temperature '', expected a number."),
        ("--sweep top-k=1.5", "--sweep gives top_k '1.5', expected a whole number."),
        ("--sweep top-p=0.5,2", "In --sweep, --top-p is 2.0, expected a number above 0 and at most 1."),
        ("--sweep temperature=nan", "In --sweep, --temperature is nan, expected a number from 0 to 1000."),
        ("--sweep top-k=1 --sweep top_k=2", "--sweep names top_k twice."),
        ("--sweep top-k=1 --sweep top-p=1 --sweep temperature=1", "--sweep names 3 settings, expected one"),
        ("--sweep top-k=1,2 --top-k 3", "--top-k is 3, and --sweep varies it."),
        ("--sweep top-k=1,2 --grid", "--grid and --sweep exclude each other"),
        ("--sweep top-k=1,2 --save-tokens", "--save-tokens and --sweep exclude each other"),
        ("--sweep top-k=1,2 --frontier gif", "--frontier and --sweep exclude each other"),
        ("--sweep top-k=1,2 --labels", "--labels goes with --grid."),
        ("--labels", "--labels goes with --grid."),
        (
            "--sweep top-k=1,2 -n 129",
            "--sweep makes 258 pictures (2 of top_k, 129 samples of each), expected at most 256.",
        ),
    ],
)
def test_bad_sweeps_are_refused_before_anything_is_looked_for(command, here, words, message):
    result = command("image", "--class", "cat", *words.split(), code=2, model="no/such/folder/at-all.pt")
    assert message in " ".join(result.stderr.split())
    assert list(here.iterdir()) == []


def test_too_many_values_and_classes_name_the_limit(command, here):
    many = ",".join(map(str, range(300)))
    assert "makes 300 pictures" in command("image", "--class", 1, "--sweep", f"top-k={many}", code=2).stderr
    result = command("image", "--class", "207,cat", "-n", 65, "--sweep", "top-k=1,2", code=2)
    assert "makes 260 pictures (2 of top_k, 130 samples of each)" in " ".join(result.stderr.split())


def test_clips_are_not_swept(command, tiny_video):
    assert "No such option" in command("video", "--class", 0, "--sweep", "top-k=1", code=2).stderr
    with pytest.raises(UsageError, match="`sweep` is not for videos"):
        Recipe(kind="video", classes=1, sweep="top-k=1")


def test_a_setting_that_the_model_does_not_have_is_refused():
    fixed = Recipe(classes=1, model="var-d16", sweep="cfg-interval=1,2", offline=True)
    with pytest.raises(UsageError, match="`cfg_interval` is 1, but this model has no such setting"):
        budget(fixed)


def test_rerun_changes_a_sweep_but_not_what_it_varies(command, here):
    command("image", "--class", 207, "--seed", 5, "--sweep", "top-k=1,2", "--temperature", 0.5, "-o", "a.png")
    assert "--top-k is 3, and --sweep varies it." in command("rerun", "a.png", "--top-k", 3, code=2).stderr
    assert (
        "--sweep makes others" in command("rerun", "a.png", "--verify", "--sweep", "top-p=1", code=2).stderr
    )
    command("rerun", "a.png", "--sweep", "temperature=0,1", "-o", "b.png")
    about = read_metadata(here / "b.png")
    assert about["sweep"] == {"temperature": [0, 1]} and about["sampling"]["top_k"] == 50  # the model's
    command("image", "--class", 207, "--seed", 5, "--grid", "--labels", "--scale", 1, "-o", "c.png")
    for name in ("c.png", "c_grid.png", "c_frontier.gif"):
        command("rerun", name, "--sweep", "temperature=0,1", "-o", "d.png", "--overwrite")
        assert (here / "d.png").read_bytes() != (here / "c.png").read_bytes()
        assert read_metadata(here / "d.png")["sweep"] == {"temperature": [0, 1]}
    assert not (here / "d_grid.png").exists() and not (here / "d_frontier.gif").exists()


def test_a_document_that_lies_about_its_sweep_is_refused(command, here):
    made = command("image", "--class", 207, "-n", 2, "--seed", 5, "--sweep", "top-k=1,2", "--json").stdout
    lies = [
        ({"sweep": {"top_k": [1, 2, 3]}}, "are not those of one run"),
        ({"sweep": {"top_k": [1, 1]}}, "sweep is"),
        ({"sweep": {"top_k": "1,2"}}, "sweep is"),
        ({"sweep": {"seed": [1, 2]}}, "sweep is"),
        ({"sweep": {"top_k": list(range(MAX_SWEPT + 1))}}, "sweep is"),
        ({"samples": json.loads(made)["samples"][:3]}, "are not those of one run"),
        ({"samples": []}, "are not those of one run"),
    ]
    for lie, words in lies:
        (here / "lie.json").write_text(json.dumps(json.loads(made) | lie))
        assert words in " ".join(command("rerun", "lie.json", code=4).stderr.split())


# --- recipes -------------------------------------------------------------------------------------

VALUES = {
    "cfg_scale": st.floats(0, 1000),
    "cfg_interval": st.integers(-1, 99),
    "temperature": st.floats(0, 1000),
    "top_k": st.integers(0, 2**14),
    "top_p": st.floats(0.01, 1),
}
SWEEPS = st.lists(st.sampled_from([*VALUES]), min_size=1, max_size=2, unique=True).flatmap(
    lambda names: st.fixed_dictionaries(
        {name: st.lists(VALUES[name], min_size=1, max_size=9) for name in names}
    )
)


@settings(deadline=None)  # of the first one, which imports
@given(SWEEPS)
def test_a_sweep_comes_back_from_json_and_from_text(sweep):
    recipe = Recipe(classes=1, sweep=sweep)
    assert recipe.frontier == "none" and list(recipe.ranges) == list(sweep)
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    texts = [f"{name.replace('_', '-')}={', '.join(map(repr, values))}" for name, values in sweep.items()]
    assert parse_sweep(texts) == recipe.ranges == parse_sweep(recipe.ranges)
    points = points_of(recipe.ranges)
    assert points == [
        dict(zip(recipe.ranges, each, strict=True)) for each in product(*recipe.ranges.values())
    ]
    assert len({words_of(point) for point in points}) == len(points)


def test_equal_values_count_once_and_keep_their_order():
    assert parse_sweep("temperature=1,0.5,1.0,.5") == {"temperature": (1, 0.5)}
    assert parse_sweep({"top_k": np.array([3, 3, 1])}) == {"top_k": (3, 1)}
    assert parse_sweep({"cfg_scale": 2}) == {"cfg_scale": (2,)} and parse_sweep(None) == {}
    assert words_of({"top_p": 0.9, "top_k": 5, "cfg_scale": 2.0}) == "top p 0.9, top k 5, cfg scale 2"


@pytest.mark.parametrize("value", [True, None, "x", float("nan"), [1]])
def test_values_from_python_are_checked(value):
    for name, expected in (("top_k", "a whole number"), ("temperature", "a number")):
        with pytest.raises(UsageError, match=rf"`sweep` gives {name} .*, expected {expected}\."):
            parse_sweep({name: [value]})


@pytest.mark.parametrize("value", [1.5, float("inf"), "1e3"])
def test_numbers_of_tokens_are_whole(value):
    with pytest.raises(UsageError, match=r"`sweep` gives top_k .*, expected a whole number"):
        parse_sweep({"top_k": value})


def test_numbers_out_of_range_are_refused():
    for value in (float("inf"), 10**400, -1):
        with pytest.raises(UsageError, match=r"temperature.*, expected a number"):
            parse_sweep({"temperature": [value]})
    with pytest.raises(UsageError, match="`sweep` has no value of top_p"):
        parse_sweep({"top_p": []})


def test_every_number_of_the_settings_can_be_swept():
    kinds = {name: kind for name, kind in SamplingSettings.__annotations__.items() if kind != "bool"}
    assert {name: kind.__name__ for name, kind in SWEPT.items()} == kinds


# --- labels --------------------------------------------------------------------------------------


def test_a_contact_sheet_with_labels_is_made_again(command, here, model):
    command("image", "--class", "207,cat", "-n", 2, "--seed", 5, "--grid", "--labels", "-o", "a.png")
    with Image.open("a_grid.png") as sheet:
        assert sheet.size == (GAP + 2 * (256 + GAP), GAP + 2 * (2 * LINE + 256 + GAP))
        for index, result in enumerate(alone(model, [207, 281], [5, 6])):
            row, column = divmod(index, 2)
            drawn = np.asarray(enlarge(result.image, 256 // result.image.width))
            x, y = GAP + column * (256 + GAP), GAP + 2 * LINE + row * (2 * LINE + 256 + GAP)
            assert (crop(sheet, x, y) == drawn).all()
            label = np.asarray(sheet.crop((x, y - 2 * LINE, x + 256, y)))
            assert label.max() > 120  # something is written
    assert read_metadata(here / "a_grid.png")["labels"] is True
    assert "labels: True" in lines(read_metadata(here / "a_grid.png"))
    command("rerun", "a_grid.png", "--verify", "-o", "b.png")
    assert (here / "a_grid.png").read_bytes() == (here / "b_grid.png").read_bytes()


HOSTILE = [
    "x" * 100_000,
    "a\nb\r\tc\x00\x1b[31m",
    "\u202eright to left\u202c שלום عليكم",
    "🍎👩‍👩‍👧‍👦" * 50,
    "e" + "\u0301" * 5000,
    "\udcff\ud800",
    "",
    "\u2028\u2029",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_labels_stay_in_their_place(text):
    picture = Image.new("RGB", (64, 64), (1, 200, 3))
    sheet = labelled_sheet([("", [(picture, [text, text])]), (text or "a title", [(picture, [])])])
    width = sheet.width - 2 * GAP
    assert 64 <= width <= 640
    pixels = np.asarray(sheet)
    for y in (GAP + 2 * LINE, GAP + 2 * LINE + 64 + GAP + HEAD):
        assert (pixels[y : y + 64, GAP : GAP + 64] == (1, 200, 3)).all()
    outside = pixels.copy()
    for y, height in ((GAP, 2 * LINE + 64), (GAP + 2 * LINE + 64 + GAP, HEAD + 64)):
        outside[y : y + height, GAP : GAP + width] = pixels[0, 0]
    assert (outside == pixels[0, 0]).all()


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(20, 300))
def test_a_shortened_label_is_a_line_that_fits(text, width):
    line = shorten(text, width, 13)
    assert line.isprintable() and (_text_width(line, 13) <= width or line == "...")
    if not line.endswith("..."):
        assert line.split() == "".join(c if c.isprintable() else " " for c in text).split()
