"""`narcli image` as a person meets it: files, names, metadata, JSON, refusals, interruptions."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import narcli
from conftest import hold_at_most
from narcli import cli, pipeline
from narcli.classes import ClassEntry
from narcli.cli import app
from narcli.hub import locate as hub
from narcli.kernels import program
from narcli.media import writers
from narcli.media.readers import read_metadata
from narcli.media.schema import SCHEMA
from narcli.prompts import parse_prompt
from narcli.runs.subjects import title_of
from narcli.settings import Sample
from narcli.viz.board import TITLE
from narcli.viz.style import DARK, LIGHT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(narcli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
PROLOGUE = "import sys; sys.argv[0] = 'narcli'\nfrom narcli.cli import main\n"
MAIN = "sys.exit(main())"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(tiny):
    def invoke(*arguments, model=tiny):
        chosen = ["--model", str(model)] if model else []
        return CliRunner().invoke(app, ["image", *chosen, *map(str, arguments)])

    return invoke


def start(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + code, "image", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        **options,
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- files ---------------------------------------------------------------------------------------


def test_a_picture_and_its_frontier_are_written_and_named(run, here):
    result = run("--class", 207, "--seed", 42)
    assert result.exit_code == 0, result.stderr
    stem = "nar-image_c207-golden_retriever_s42"
    assert result.stdout.splitlines() == [f"{stem}.png", f"{stem}_frontier.gif"]
    assert result.stderr.startswith("golden retriever (dog), seed 42: 7 steps instead of 16, ")
    assert names(here) == [f"{stem}.png", f"{stem}_frontier.gif"]
    with Image.open(f"{stem}.png") as picture:
        assert picture.size == (256, 256)
        assert picture.text["parameters"].startswith("class 207, golden retriever (dog)\nSteps: 7, Seed: 42,")
    with Image.open(f"{stem}_frontier.gif") as animation:
        assert animation.n_frames == 7 + 1


def test_a_seed_that_is_not_given_is_in_the_name_and_the_report(run, here):
    result = run("--class", "cat", "--frontier", "none", "--quiet")
    (file,) = here.iterdir()
    seed = read_metadata(file)["seed"]
    assert file.name == f"nar-image_c281-cat_s{seed}.png" == result.stdout.strip()
    assert result.stderr == ""


def test_several_classes_get_the_same_seeds_and_one_animation(run, here):
    result = run("--class", "207,cat", "-n", 2, "--seed", 7, "--grid", "--batch-size", 3)
    first = "nar-image_c207-golden_retriever_s7"
    assert result.stdout.splitlines() == [
        f"{first}.png",
        "nar-image_c207-golden_retriever_s8.png",
        "nar-image_c281-cat_s7.png",
        "nar-image_c281-cat_s8.png",
        f"{first}_frontier.gif",
        f"{first}_grid.png",
    ]
    assert "4 pictures, seeds 7 to 8" in result.stderr
    for companion in ("_frontier.gif", "_grid.png"):
        about = read_metadata(here / (first + companion))
        assert (about["classes"], about["seed"], about["num"]) == ([207, 281], 7, 2)


def test_every_picture_is_the_same_as_asked_for_alone(run, here):
    run("--class", "207,cat", "-n", 3, "--seed", 7, "--frontier", "none", "-o", "many/")
    for number, seed in ((207, 8), (281, 9)):
        run("--class", number, "--seed", seed, "--frontier", "none", "-o", f"{seed}.png")
        (many,) = (here / "many").glob(f"*c{number}*s{seed}.png")
        with Image.open(many) as one, Image.open(f"{seed}.png") as other:
            assert one.tobytes() == other.tobytes()


def test_nothing_is_overwritten_unless_asked(run, here):
    for _ in range(2):
        run("--class", "cat", "--seed", 1, "-o", "a.png")
    assert names(here) == ["a.png", "a_1.png", "a_1_frontier.gif", "a_frontier.gif"]
    before = (here / "a.png").read_bytes()
    result = run("--class", "tiger", "--seed", 1, "-o", "a.png", "--overwrite")
    assert result.stdout.splitlines() == ["a.png", "a_frontier.gif"]
    assert len(names(here)) == 4 and (here / "a.png").read_bytes() != before


def test_output_may_be_a_template(run, here):
    run("--class", "cat,tiger", "--seed", 1, "-o", "{class_name}/{model}-{seed}.png", "--frontier", "none")
    assert (here / "cat" / "tiny-1.png").exists() and (here / "tiger" / "tiny-1.png").exists()


@pytest.mark.parametrize("kind", ["gif", "mp4", "png"])
@pytest.mark.parametrize("mode", ["reveal", "decode"])
def test_the_frontier_comes_in_three_formats_and_two_modes(run, here, kind, mode):
    result = run("--class", "cat", "-o", "a.png", "--frontier", kind, "--frontier-mode", mode)
    assert result.exit_code == 0, result.stderr
    about = read_metadata(here / f"a_frontier.{kind}")
    assert about["frontier"] == {"format": kind, "mode": mode}


def test_partial_pictures_are_decoded_only_on_request(run, monkeypatch):
    asked = []
    original = pipeline.Pipeline.partials

    def partials(self, tokens, *how):
        asked.append(len(tokens))
        return original(self, tokens, *how)

    monkeypatch.setattr(pipeline.Pipeline, "partials", partials)
    run("--class", "cat", "-n", 20)
    assert asked == []
    run("--class", "cat", "-n", 20, "--frontier-mode", "decode")
    assert asked == [16]


@pytest.mark.parametrize("kind", ["gif", "png"])
def test_a_light_frontier_is_light_and_made_again_so(run, tiny, here, kind):
    options = ("--class", "cat", "--seed", 1, "--frontier", kind)
    run(*options, "-o", "dark.png")
    run(*options, "-o", "light.png", "--theme", "light")
    about = [read_metadata(here / f"{theme}_frontier.{kind}")["frontier"] for theme in ("dark", "light")]
    assert about == [{"format": kind, "mode": "reveal"}, {"format": kind, "mode": "reveal", "theme": "light"}]
    for theme, color in (("dark", DARK.background), ("light", LIGHT.background)):
        with Image.open(here / f"{theme}_frontier.{kind}") as picture:
            assert picture.convert("RGB").getpixel((2, 2)) == color
    result = CliRunner().invoke(
        app, ["rerun", f"light_frontier.{kind}", "-o", "again.png", "--model", str(tiny)]
    )
    assert result.exit_code == 0, result.stderr
    made = [here / f"{name}_frontier.{kind}" for name in ("light", "again")]
    assert read_metadata(made[1])["frontier"] == read_metadata(made[0])["frontier"]
    with Image.open(made[0]) as light, Image.open(made[1]) as again:
        assert light.tobytes() == again.tobytes()


def test_the_title_of_a_frontier_is_a_setting_that_no_metadata_leaves_out(run, here):
    for name, options in (("with", ()), ("without", ("--no-metadata",))):
        run("--class", "cat", "--seed", 1, "--frontier", "png", "-o", f"{name}.png", *options)
    sizes = [Image.open(here / f"{name}_frontier.png").size for name in ("with", "without")]
    assert sizes[0] == (sizes[1][0], sizes[1][1] + TITLE)


def test_titles_say_what_the_samples_are_of():
    prompts = [parse_prompt(text) for text in ("a red apple", "a dog", "a cat", "rain", "snow")]
    assert title_of([Sample(prompts[0], 7)], "emoji-text") == ("a red apple", "seed 7", "emoji-text")
    dog = ClassEntry(0, 207, "dog", "golden retriever")
    assert title_of([Sample(dog, 2)], "emoji") == ("dog", "seed 2", "emoji")
    samples = [Sample(prompt, seed) for prompt in prompts for seed in (3, 4)]
    assert title_of(samples, "m") == ("a red apple, a dog, a cat and 2 more", "seeds 3 to 4", "m")


def test_decoding_the_frontier_is_counted_as_decoding(run, monkeypatch):
    original = pipeline.Pipeline.partials

    def partials(self, tokens, *how):
        time.sleep(0.5)
        return original(self, tokens, *how)

    monkeypatch.setattr(pipeline.Pipeline, "partials", partials)
    seconds = json.loads(run("--class", "cat", "--frontier-mode", "decode", "--json").stdout)["seconds"]
    assert seconds["decode"] >= 0.5


@pytest.mark.parametrize(("scale", "size"), [(None, 256), (1, 8), (3, 24)])
def test_pictures_are_enlarged_as_their_metadata_says(run, here, scale, size):
    run("--class", "cat", "-o", "a.png", *(["--scale", scale] if scale else []), "--frontier", "none")
    about = read_metadata(here / "a.png")
    assert about["scale"] == (scale or 32)
    assert about.get("filter") == (None if scale == 1 else "lanczos")
    with Image.open("a.png") as picture:
        assert picture.size == (size, size)


# --- metadata ------------------------------------------------------------------------------------

SETTINGS = {"cfg_scale": 3.5, "cfg_interval": 9, "temperature": 0.75, "top_k": 17, "top_p": 0.875}


def test_metadata_holds_what_makes_the_picture_again(run, here, tiny):
    flags = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", value)]
    run("--class", 207, "--seed", 5, *flags, "--dtype", "float32", "-o", "a.png")
    about = read_metadata(here / "a.png")
    assert about["schema"] == SCHEMA and about["kind"] == "image"
    assert about["sampling"] == SETTINGS
    assert (about["device"], about["dtype"], about["grid"], about["steps"]) == ("cpu", "float32", [4, 4], 7)
    assert about["narcli"] == narcli.__version__
    assert about["model"]["name"] == about["tokenizer"]["name"] == "tiny"
    assert str(here) not in json.dumps(about) and str(tiny.parent) not in json.dumps(about)

    pipe = narcli.load(tiny, dtype=about["dtype"])
    (again,) = pipe.images(about["class"]["id"], seed=about["seed"], **about["sampling"])
    assert again.metadata["tokens_sha256"] == about["tokens_sha256"]
    assert again.metadata["model"] == about["model"]


def test_json_is_one_document_about_all_files(run, here):
    result = run("--class", "207,cat", "-n", 2, "--seed", 7, "--grid", "--json")
    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert sorted(document["files"]) == names(here) and len(document["files"]) == 6
    assert [sample["file"] for sample in document["samples"]] == document["files"][:4]
    assert [(s["class"]["id"], s["class"]["name"], s["seed"]) for s in document["samples"]] == [
        (207, "dog", 7),
        (207, "dog", 8),
        (281, "cat", 7),
        (281, "cat", 8),
    ]
    assert set(document["seconds"]) == {"import", "load", "sample", "decode", "write", "total"}
    phases = sum(document["seconds"].values()) - document["seconds"]["total"]
    assert 0 < phases <= document["seconds"]["total"] + 0.01
    for sample in document["samples"]:
        inside = read_metadata(here / sample["file"])
        shared = {
            key: document[key]
            for key in document
            if key not in ("files", "samples", "seconds", "frontier", "contact_sheet")
        }
        assert inside == shared | {key: value for key, value in sample.items() if key != "file"}


def test_defaults_of_sampling_are_the_models(run, here):
    run("--class", "cat", "-o", "a.png", "--top-k", 0)
    sampling = read_metadata(here / "a.png")["sampling"]
    assert (sampling["cfg_scale"], sampling["top_k"]) == (1.5, 0)


def test_released_files_run_with_their_tokenizer(run, here, golden):
    model, tokenizer = golden
    result = run("--class", 3, "--seed", 1, "--tokenizer", tokenizer, model=model)
    assert result.exit_code == 0, result.stderr
    about = read_metadata(here / result.stdout.splitlines()[0])
    assert (about["model"]["file"], about["tokenizer"]["file"]) == ("c2i.pt", "vq.pt")


def test_the_built_in_model_makes_a_dog(run, here):
    result = run("--class", 207, "--seed", 0, model=None)
    assert result.exit_code == 0, result.stderr
    about = read_metadata(here / "nar-image_c207-golden_retriever_s0.png")
    assert about["model"]["name"] == "emoji" and about["class"]["name"] == "dog"
    with Image.open("nar-image_c207-golden_retriever_s0.png") as picture:
        assert picture.size == (256, 256)


def test_what_a_person_should_know_of_the_files_is_said_once_each(run, tiny, monkeypatch):
    original = hub.Located.fetch

    def fetch(self, **options):
        note = f"{self.model.kind} is the copy on this machine."
        return replace(original(self, **options), note=note)

    monkeypatch.setattr(hub.Located, "fetch", fetch)
    warning = "warning: image is the copy on this machine.\n"
    assert run("--class", "cat", "--quiet").stderr == warning
    both = run("--class", "cat", "--quiet", "--tokenizer", tiny).stderr
    assert both == warning + warning.replace("image is", "image-tokenizer is")


# --- refusals ------------------------------------------------------------------------------------

MISUSE = [
    ([], "No class or prompt given", "--class 207"),
    (["--class", "golden retreiver"], "no class 'golden retreiver'", "golden retriever"),
    (["--class", 99999], "no class 99999", "Nearest"),
    (["--class", "207,,1"], "empty class", "commas"),
    (["--class", 207, "--num", 0], "--num is 0", None),
    (["--class", 207, "--seed", -1], "--seed is -1", None),
    (["--class", 207, "--seed", 2**32], f"--seed is {2**32}", None),
    (["--class", 207, "--cfg-scale", "nan"], "--cfg-scale is nan", None),
    (["--class", 207, "--cfg-interval", -2], "--cfg-interval is -2", None),
    (["--class", 207, "--temperature", -1], "--temperature is -1", None),
    (["--class", 207, "--top-k", -5], "--top-k is -5", None),
    (["--class", 207, "--top-p", 1.5], "--top-p is 1.5", None),
    (["--class", 207, "--batch-size", 0], "--batch-size is 0", None),
    (["--class", 207, "--batch-size", "many"], "--batch-size is 'many', expected auto or a whole", None),
    (["--class", 207, "--scale", 0], "--scale is 0", None),
    (["--class", 207, "--scale", 17], "--scale is 17", None),
    (["--class", 207, "--device", "gpu"], "no device 'gpu'", "cuda"),
    (["--class", 207, "--frontier", "none", "--frontier-mode", "decode"], "--frontier-mode", "Drop one"),
    (["--class", 207, "--frontier", "none", "--theme", "light"], "--theme goes with a frontier", "Drop one"),
    (["--class", 207, "--revision", "main"], "--revision is for models of the Hub", "Leave"),
    (["--class", 207, "--tokenizer", "vq16-c2u"], "no model 'vq16-c2u'", "vq16-c2i"),
    (["--class", 207, "-o", "a.jpg"], "ends in '.jpg'", ".png"),
    (["--class", 207, "-o", "no/a.png"], "folder no does not exist", "slash"),
    (["--class", 207, "-o", "{sed}.png"], "no field {sed}", "{seed}"),
]


@pytest.mark.parametrize(("arguments", "message", "hint"), MISUSE)
def test_misuse_exits_2_and_says_what_to_do(run, here, arguments, message, hint):
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ") and message in lines[0]
    assert hint is None or hint in lines[1]
    assert len(lines) <= 3 and names(here) == []


@pytest.mark.parametrize(
    "arguments", [["--seed", "x"], ["--dtype", "int8"], ["--frontier", "webp"], ["--prompt", "a"]]
)
def test_words_that_are_no_values_exit_2(run, here, arguments):
    result = run("--class", 207, *arguments)
    assert result.exit_code == 2 and arguments[0] in result.stderr and names(here) == []


def test_all_that_is_checked_is_checked_before_torch_is_imported(tiny, monkeypatch, here):
    code = f"""
import contextlib, io
for arguments in {[[str(a) for a in arguments] for arguments, _, _ in MISUSE]!r}:
    sys.argv[1:] = ["image", "--model", {str(tiny)!r}, *arguments]
    with contextlib.redirect_stderr(io.StringIO()):
        assert main() == 2, arguments
    assert not {{"torch", "numpy", "PIL", "huggingface_hub"}} & set(sys.modules), arguments
"""
    process = start(code)
    assert (process.communicate(), process.returncode) == (("", ""), 0)


def test_running_out_of_memory_exits_5(run, here, monkeypatch):
    def explode(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        yield

    monkeypatch.setattr(program, "generate", explode)
    result = run("--class", 207)
    assert result.exit_code == 5 and "smaller model" in result.stderr and names(here) == []


@pytest.mark.parametrize("size", [4, "auto"])
def test_a_batch_that_memory_does_not_hold_is_halved_with_a_notice(run, here, monkeypatch, size):
    options = ["--class", "207,cat", "-n", 3, "--seed", 7, "--grid", "--save-tokens", "--batch-size", size]
    for name in ("whole", "short", "quiet"):
        (here / name).mkdir()
    whole = run(*options, "-o", "whole/")
    hold_at_most(monkeypatch, 2, RuntimeError("not enough memory: you tried to allocate 99 bytes"))
    result = run(*options, "-o", "short/")
    assert result.exit_code == 0
    tried = {4: [4, 2], "auto": [6, 3]}[size]
    told = [f"Not enough memory for {n} samples together; going on with {n // 2}." for n in tried]
    assert result.stderr.splitlines()[:-1] == told
    assert result.stdout == whole.stdout.replace("whole", "short")
    assert len(names(here / "short")) == 6 + 6 + 2
    for name in names(here / "short"):
        assert (here / "short" / name).read_bytes() == (here / "whole" / name).read_bytes(), name
    assert run(*options, "-o", "quiet/", "--quiet").stderr == ""
    hold_at_most(monkeypatch, 0, MemoryError())
    assert run(*options).exit_code == 5


def test_pictures_finished_before_memory_ran_out_are_kept_and_named(run, here, monkeypatch):
    written, write = [], writers.write_png

    def write_png(path, *arguments, **options):
        written.append(path)
        if len(written) == 2:
            hold_at_most(monkeypatch, 0, MemoryError())
        return write(path, *arguments, **options)

    monkeypatch.setattr(writers, "write_png", write_png)
    result = run("--class", 207, "-n", 7, "--seed", 0, "--batch-size", 2, "-o", "{seed}.png")
    assert result.exit_code == 5 and "for 2 samples together; going on with 1" in result.stderr
    assert result.stdout.split() == names(here) == ["0.png", "1.png"]


def test_running_out_of_memory_anywhere_else_exits_5_too(tiny, here):
    code = """
from narcli.pipeline import Pipeline
def partials(*_):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
Pipeline.partials = partials
"""
    process = start(code + MAIN, "--class", 207, "--model", tiny, "--frontier-mode", "decode", cwd=here)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, len(out.split())) == (5, 1)
    assert err.startswith("error: Out of memory.") and len(err.splitlines()) == 2


def test_json_is_ascii_where_the_output_is_not_utf(here):
    for encoding, expected in (("utf-8", "🐕"), ("ascii", r"\ud83d\udc15"), ("latin-1", r"\ud83d\udc15")):
        code = f"sys.argv[1:] = ['classes', '--json']; sys.stdout.reconfigure(encoding={encoding!r})\n"
        with subprocess.Popen(
            [sys.executable, "-c", PROLOGUE + code + MAIN], stdout=subprocess.PIPE, env=ENVIRONMENT
        ) as process:
            out = process.stdout.read().decode(encoding)
        assert expected in out
        assert any(row.get("emoji") == "🐕" for row in json.loads(out)["classes"])


def test_a_model_of_another_kind_exits_with_what_to_do(run, here):
    result = run("--class", 5, model="nar-l-ucf101")
    assert result.exit_code == 2 and "narcli video" in result.stderr


# --- interruptions and full disks ----------------------------------------------------------------

SLOW = """
import time, narcli.kernels.program as program
original = program.generate
def slow(*arguments, **options):
    for step in original(*arguments, **options):
        print("step", step.index, file=sys.stderr, flush=True)
        yield step
        time.sleep(0.3)
program.generate = slow
"""


def test_ctrl_c_during_sampling_leaves_nothing_and_exits_130(tiny, here):
    process = start(SLOW + MAIN, "--class", 207, "--model", tiny, cwd=here)
    for line in process.stderr:
        if line == "step 2\n":
            process.send_signal(signal.SIGINT)
    process.wait(120)
    assert process.returncode == 130
    assert process.stdout.read() == "" and names(here) == []


def test_ctrl_c_between_pictures_leaves_whole_ones_only(tiny, here):
    arguments = ["--class", 207, "-n", 3000, "--batch-size", 1, "--frontier", "none", "--model", tiny]
    process = start(MAIN, *arguments, cwd=here)
    deadline = time.monotonic() + 120
    while len(names(here)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert sorted(out.split()) == names(here)
    assert (process.returncode, err) == (130, "Interrupted.\n")
    assert 5 <= len(names(here)) < 3000
    for file in here.iterdir():
        assert file.suffix == ".png" and read_metadata(file)["class"]["id"] == 207
        with Image.open(file) as picture:
            picture.load()


@pytest.mark.parametrize(("limit", "written"), [(500, []), (10_000, ["a.png"])])
def test_a_full_disk_is_one_sentence_and_leaves_no_partial_file(tiny, here, limit, written):
    process = start(
        MAIN,
        *("--class", 207, "--model", tiny, "--scale", 1, "-o", "a.png"),
        cwd=here,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out.split(), names(here)) == (1, written, written)
    failed = "a_frontier.gif" if written else "a.png"
    assert err.startswith(f"error: Could not write {failed}: the file would be larger than allowed here.")
    assert len(err.splitlines()) == 2


def test_progress_counts_decoding_steps_on_a_terminal_only(run, monkeypatch):
    counted = []
    from contextlib import contextmanager

    @contextmanager
    def progress(self, label, total):
        counted.append((label, total, []))
        yield lambda count, note, total: counted[-1][2].append((count, total))

    assert "\x1b" not in run("--class", "cat", "--frontier", "none").stderr
    monkeypatch.setattr(cli.console.Console, "progress", progress)
    run("--class", "cat", "-n", 5, "--batch-size", 2, "--frontier", "none")
    assert counted == [("decoding", 21, [(1, 21)] * 21)]
    counted.clear()
    hold_at_most(monkeypatch, 4, MemoryError())
    run("--class", "cat", "-n", 5, "--batch-size", 4, "--frontier", "none")
    # The fourth step failed: three batches instead of two, from the first step.
    assert counted == [("decoding", 14, [*[(1, 14)] * 3, (-2, 21), *[(1, 21)] * 20])]


def test_classes_given_one_by_one_are_all_made(run):
    made = run("--class", 207, "--class", "cat,208", "--seed", 3, "--frontier", "none", "--json")
    assert [sample["class"]["id"] for sample in json.loads(made.stdout)["samples"]] == [207, 281, 208]
