"""`narcli video --frames-from`: clips that go on from given frames, with the golden LARP-AR and tokenizer."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import narcli
from conftest import command
from narcli import Recipe
from narcli.checkpoints.load import load_tokenizer, load_transformer
from narcli.checkpoints.save import save_model
from narcli.encoding import GIVEN, read_given
from narcli.errors import CheckpointError, UsageError
from narcli.hub.catalog import MODELS
from narcli.hub.sizes import networks_of
from narcli.media.metadata import unpack_tokens
from narcli.media.readers import read_metadata
from narcli.media.writers import write_frames, write_gif, write_mp4, write_webp
from narcli.settings import GivenFrames

DATA = Path(__file__).with_name("data")
GOLDEN = load_file(DATA / "video-peers" / "larp_ar_fp.expected.safetensors")
QUIET = ["--frontier", "none", "--dtype", "float32", "--scale", 1]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A narcli folder of the golden frame prediction and LARP: clips of 4 frames of 16 pixels."""
    folder = tmp_path_factory.mktemp("frames")
    for name, file in (("model", "video-peers/larp_ar_fp"), ("tokenizer", "larp")):
        (folder / name).mkdir()
        shutil.copy(DATA / f"{file}.safetensors", folder / name / "model.safetensors")
        shutil.copy(DATA / f"{file}.config.json", folder / name / "config.json")
    return save_model(
        folder / "goes-on",
        transformer=load_transformer(folder / "model"),
        tokenizer=load_tokenizer(folder / "tokenizer"),
    )


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shades(count, size=(16, 16)):
    """Pictures that differ, each from the others and from place to place."""
    y, x = np.mgrid[: size[1], : size[0]]
    return [
        Image.fromarray(np.stack([x * 9, y * 9, x * 0 + 40 * n], -1).astype(np.uint8)) for n in range(count)
    ]


def given_of(path, **options):
    """Codes that a file records of its given frames."""
    about = read_metadata(Path(path))["given_frames"]
    return about["source"], about["count"], unpack_tokens(path, about, 8)


# --- what comes out --------------------------------------------------------------------------------


def test_tokens_are_those_of_the_released_code(model, here):
    """The golden frames are floats, which no picture file holds: their codes are given as recorded ones."""
    frames = [GivenFrames(f"clip {n}", 2, codes=tuple(codes)) for n, codes in enumerate(
        GOLDEN["cond_tokens"][:, :-1].tolist())]  # fmt: skip
    clips = narcli.load(model, dtype="float32").videos(frames_from=frames, seed=0, temperature=0)
    assert torch.equal(torch.stack([clip.tokens for clip in clips]), GOLDEN["tokens"].long())
    assert [clip.entry for clip in clips] == frames and all(len(clip.frames) == 4 for clip in clips)


def test_frames_of_a_folder_are_encoded_as_the_tokenizer_does(model, here):
    pictures = shades(3)
    write_frames(here / "bird", pictures, None)
    command("video", "--model", model, "--frames-from", "bird", "--seed", 1, *QUIET, "-o", "a.gif")
    pixels = torch.from_numpy(np.stack(pictures)).movedim(-1, 0)[None] / 255
    codes = load_tokenizer(model).encode_given(pixels, 4)
    assert given_of("a.gif") == ("bird", 3, tuple(codes[0].tolist()))


def test_the_result_says_which_frames_were_given(model, here):
    write_mp4(here / "bird song.mp4", shades(12, (64, 48)))
    out = command("video", "--model", model, "--frames-from", "bird song.mp4", "--seed", 7, "--json", *QUIET)
    document = json.loads(out)
    assert document["files"] == ["nar-video_bird_song_s7.mp4"]
    about = read_metadata(here / "nar-video_bird_song_s7.mp4")
    assert about["given_frames"] == document["samples"][0]["given_frames"]
    # A clip of this tokenizer has four frames, and one is left to be made.
    assert (about["given_frames"]["source"], about["given_frames"]["count"]) == ("bird song.mp4", 3)
    assert (about["kind"], about["frames"], about["order"], about["sampling"]["cfg_scale"]) == (
        "video", 4, "raster", 1)  # fmt: skip
    assert "class" not in about and str(here) not in json.dumps(about)
    shown = command("show", "nar-video_bird_song_s7.mp4")
    assert "given_frames: source bird song.mp4, count 3, tokens_sha256" in shown
    assert about["given_frames"]["tokens"] not in shown


def test_a_clip_and_a_folder_of_its_frames_give_the_same(model, here):
    pictures = shades(7, (24, 20))
    write_webp(here / "a.webp", pictures, quality=100)
    write_gif(here / "b.gif", pictures)
    kinds = {"a.webp": Image.open("a.webp"), "b.gif": Image.open("b.gif")}
    for name, animation in kinds.items():
        frames = []
        for number in range(5):
            animation.seek(number)
            frames.append(animation.convert("RGB"))
        write_frames(here / f"{name}s", frames, None)
        one, other = read_given(name), read_given(f"{name}s")
        assert one.count == other.count == GIVEN
        assert [p.tobytes() for p in one.pictures] == [p.tobytes() for p in other.pictures]
    write_mp4(here / "c.mp4", pictures, quality=100)
    near = zip(read_given("c.mp4").pictures, pictures[:5], strict=True)
    assert all(np.abs(np.asarray(a, int) - np.asarray(b)).mean() < 6 for a, b in near)


def test_pictures_go_by_their_numbers_and_short_clips_are_given_whole(here):
    (here / "walk").mkdir()
    for number, picture in zip((10, 9, 1, 2), shades(4), strict=True):
        picture.save(here / "walk" / f"step{number}.png")
    (here / "walk" / "notes.txt").write_text("left out")
    (here / "walk" / ".hidden.png").write_text("left out")
    found = read_given(here / "walk")
    assert (found.name, found.count) == ("walk", 4)
    assert [np.asarray(picture)[0, 0, 2] // 40 for picture in found.pictures] == [2, 3, 1, 0]
    shades(1)[0].save("one.png")
    assert (
        read_given("one.png").count == 1 and str(read_given("one.png")) == "from the first frame of one.png"
    )


def test_digits_of_other_scripts_are_letters_of_names(here):
    (here / "walk").mkdir()
    for name, picture in zip(("10", "9", "\u0663" + "1", "\u0662"), shades(4), strict=True):
        picture.save(here / "walk" / f"{name}.png")
    found = read_given(here / "walk")
    assert [np.asarray(picture)[0, 0, 2] // 40 for picture in found.pictures] == [1, 0, 3, 2]


def test_several_clips_share_a_frontier_that_makes_them_again(model, here):
    for name, pictures in (("a", shades(2)), ("b", shades(3)[1:])):
        write_frames(here / name, pictures, None)
    command("video", "--model", model, "--frames-from", "a", "--frames-from", "b", "-n", 2, "--seed", 3,
            "--dtype", "float32", "--batch-size", 3, "-o", "made/")  # fmt: skip
    names = sorted(path.name for path in Path("made").glob("*.mp4"))
    assert names == [f"nar-video_{clip}_s{seed}.mp4" for clip in "ab" for seed in (3, 4)]
    command("video", "--model", model, "--frames-from", "b", "--seed", 4, *QUIET, "-o", "alone.gif")
    hashes = [read_metadata(path)["tokens_sha256"] for path in (Path("made", names[3]), Path("alone.gif"))]
    assert hashes[0] == hashes[1]
    shutil.rmtree("a")
    shutil.rmtree("b")
    (frontier,) = Path("made").glob("*_frontier.gif")
    command("rerun", frontier, "--model", model, "--verify", "-o", "again/", "--frontier", "none")
    assert len(list(Path("again").iterdir())) == 4


# --- rerun, decode, Python -------------------------------------------------------------------------


@pytest.fixture
def made(model, here):
    write_gif(here / "bird.gif", shades(6))
    command("video", "--model", model, "--frames-from", "bird.gif", "--seed", 5, "--save-tokens", *QUIET,
            "-o", "a.webp")  # fmt: skip
    Path("bird.gif").unlink()
    return here / "a.webp"


def test_rerun_needs_no_source(model, made, here):
    command("rerun", made, "--model", model, "--verify", "-o", "b.webp")
    assert (here / "b.webp").read_bytes() == made.read_bytes()
    command("rerun", made, "--model", model, "--seed", 6, "-o", "c.webp")
    assert given_of("c.webp") == given_of(made)
    assert read_metadata(Path("c.webp"))["tokens_sha256"] != read_metadata(made)["tokens_sha256"]


def test_rerun_takes_other_frames(model, made, here):
    write_frames(here / "other", shades(2), None)
    command("rerun", made, "--model", model, "--frames-from", "other", "-o", "b.webp")
    assert given_of("b.webp")[:2] == ("other", 2)
    words = command("rerun", made, "--model", model, "--frames-from", "other", "--verify", code=2)
    assert "--frames-from makes others" in words


def test_a_json_document_is_made_again(model, here):
    write_frames(here / "bird", shades(2), None)
    text = command("video", "--model", model, "--frames-from", "bird", "-n", 2, "--json", *QUIET)
    Path("run.json").write_text(text)
    command("rerun", "run.json", "--model", model, "--verify", "-o", "again/")


def test_tokens_are_decoded_with_their_given_frames(model, made, here):
    command("decode", "a_tokens.safetensors", "--tokenizer", model, "--dtype", "float32", "-o", "b.webp",
            "--frontier", "none")  # fmt: skip
    assert given_of("b.webp") == given_of(made)
    with Image.open("b.webp") as one, Image.open(made) as other:
        assert one.n_frames == other.n_frames == 4 and one.tobytes() == other.tobytes()


def test_recipes_survive_json_with_paths_and_with_codes():
    for clips in (["a.mp4", "b"], [GivenFrames("a.mp4", 5, codes=(3, 70_000, 1))]):
        recipe = Recipe(kind="video", model="m", frames_from=clips, seed=3)
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
        assert recipe.model_kind == "frames"
    assert Recipe(kind="video", frames_from=Path("a.mp4")).frames_from == ("a.mp4",)
    with pytest.raises(UsageError, match="frames given from mine have no codes"):
        Recipe(kind="video", frames_from=GivenFrames("mine", 1, tuple(shades(1)))).to_json()


def test_python_takes_paths_and_pictures_of_its_own(model, here):
    pictures = tuple(shades(3))
    write_frames(here / "bird", pictures, None)
    pipe = narcli.load(model, dtype="float32")
    (one,) = pipe.videos(frames_from=here / "bird", seed=1)
    (other,) = pipe.videos(frames_from=GivenFrames("mine", 3, pictures), seed=1)
    assert torch.equal(one.tokens, other.tokens) and one.entry.codes == other.entry.codes
    assert "given frames" in repr(pipe) and one.name == "nar-video_bird_s1"
    for wrong in ({"classes": 1}, {"prompts": "a bird"}, {}, {"classes": 1, "frames_from": "bird"}):
        with pytest.raises(UsageError, match="goes on from given frames"):
            pipe.videos(**wrong)


# --- before a run, and refusals --------------------------------------------------------------------


def test_a_dry_run_reads_the_clip_and_draws_nothing(model, here):
    write_gif(here / "bird.gif", shades(6))
    out = command("video", "--model", model, "--frames-from", "bird.gif", "--seed", 1, "--dry-run", "--json")
    about = json.loads(out)
    assert about["files"] == ["nar-video_bird_s1.mp4", "nar-video_bird_s1_frontier.gif"]
    assert (about["steps"], about["cells"]) == (8, 8) and about["memory"]["needed"]["total"] > 0
    assert [path.name for path in here.iterdir()] == ["bird.gif"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--cfg-scale", 1.5], "--cfg-scale is 1.5, and models that go on from frames have no guidance"),
        (["--cfg-scale", 0], "--cfg-scale is 0, and"),
        (["--cfg-interval", 3], "--cfg-interval is 3, and"),
        (["--class", 1], "--class and --frames-from exclude each other"),
    ],
)
def test_what_does_not_go_with_frames_is_refused_before_the_clip_is_read(model, extra, words):
    assert words in command("video", "--model", model, "--frames-from", "nowhere.mp4", *extra, code=2)


def test_models_and_subjects_that_do_not_go_together_are_refused(model, tiny_video, here):
    write_gif(here / "bird.gif", shades(6))
    clip = ["--frames-from", "bird.gif"]
    for words, hint, arguments in (
        ("goes-on is a model of videos that go on from frames, not a model of videos of classes",
         "narcli video --frames-from", ["--model", model, "--class", 1]),
        ("tiny-video is a model of videos of classes, not a model of videos that go on from frames",
         "narcli video --class", ["--model", tiny_video, *clip]),
        ("nar-l-ucf101 is a model of videos of classes", "narcli video --class",
         ["--model", "nar-l-ucf101", *clip]),
        ("larp-ar-k600 is a model of videos that go on", "--frames-from",
         ["--model", "larp-ar-k600", "--class", 1]),
        ("The default is no model of videos that go on from frames", "--model larp-ar-k600", clip),
        ("No class or frames given", "--frames-from", []),
    ):  # fmt: skip
        message = command("video", *arguments, code=2)
        assert words in message and hint in message
    assert "no such option" in command("image", *clip, code=2).lower()
    assert "goes on from frames" in command("classes", "--model", "larp-ar-k600", code=2)


def test_a_folder_whose_defaults_guide_is_refused(model, here):
    shutil.copytree(model, "guided")
    config = json.loads(Path("guided/config.json").read_text()) | {"defaults": {"cfg_scale": 1.25}}
    Path("guided/config.json").write_text(json.dumps(config))
    write_gif(here / "bird.gif", shades(6))
    words = ["video", "--model", "guided", "--frames-from", "bird.gif", *QUIET]
    assert "--cfg-scale is 1.25" in command(*words, code=2)
    command(*words, "--cfg-scale", 1)


def test_sources_that_are_no_clips_are_refused_in_a_sentence(model, here):
    Path("empty").mkdir()
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("hello")
    Path("words.mp4").write_text("hello")
    Path("nothing.gif").touch()
    Path("list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nfile:whole.mp4\n")
    write_mp4(here / "whole.mp4", shades(16, (64, 64)))
    content = Path("whole.mp4").read_bytes()
    Path("cut.mp4").write_bytes(content[: len(content) // 2])
    write_gif(here / "whole.gif", shades(6))
    content = Path("whole.gif").read_bytes()
    Path("cut.gif").write_bytes(content[: len(content) // 2])
    os.mkfifo("pipe")
    Path("pipes").mkdir()
    os.mkfifo("pipes/00.png")
    for source, words in {
        "missing.mp4": "Could not read missing.mp4: no such file",
        "empty": "The folder empty holds no pictures",
        "texts": "The folder texts holds no pictures",
        "words.mp4": "words.mp4 cannot be read as a clip",
        "nothing.gif": "nothing.gif cannot be read as a clip",
        "list.m3u8": "list.m3u8 cannot be read as a clip: it is damaged, or of no format that narcli reads",
        "cut.mp4": "cut.mp4 cannot be read as a clip",
        "cut.gif": "cut.gif cannot be read as a picture",
        "pipe": "pipe is a named pipe (FIFO), expected a file",
        "pipes": "00.png is a named pipe (FIFO), expected a file",
    }.items():
        message = command("video", "--model", model, "--frames-from", source, code=4)
        assert words in message and len(message.splitlines()) <= 3, message


def test_an_empty_path_is_not_the_present_folder(model, here):
    shades(1)[0].save("one.png")
    assert "--frames-from is empty" in command("video", "--model", model, "--frames-from", "", code=2)


def test_damaged_codes_are_refused(model, made, here):
    about = read_metadata(made)
    codes = about["given_frames"]
    for given, words in (
        ({**codes, "tokens": "AAAA"}, "not those of its hash"),
        ({key: codes[key] for key in codes if key != "tokens"}, "do not belong to this model"),
        ({**codes, "count": 0}, "given_frames"),
        ({"source": "/etc/passwd"}, "given_frames"),
        ("/etc/passwd", "given_frames"),
    ):
        Path("a.json").write_text(json.dumps({**about, "given_frames": given}))
        assert words in command("rerun", "a.json", "--model", model, code=4)
    Path("a.json").write_text(json.dumps({**about, "frames_from": ["/etc/passwd"]}))
    assert "frames_from" in command("rerun", "a.json", "--model", model, code=4)


def test_codes_beyond_the_model_are_refused(model):
    pipe = narcli.load(model)
    for codes in ((1,) * 7 + (64,), (1,) * 9, ()):
        with pytest.raises(CheckpointError, match="do not belong to this model"):
            pipe.videos(frames_from=GivenFrames("a", 2, codes=codes))


# --- the released model ----------------------------------------------------------------------------


def test_the_row_of_the_released_model_has_its_parameters():
    row = MODELS["larp-ar-k600"]
    networks = networks_of(row)
    assert networks.parameters["transformer"] == 633_157_120
    assert networks.transformer.kind == row.kind == "frames" and networks.runs
    shown = json.loads(command("models", "list", "--json"))
    (listed,) = (each for each in shown["models"] if each["name"] == row.name)
    assert listed["kind"] == "frames" and not listed["default"]
    assert set(shown["defaults"]) == {"image", "text", "video"}


def test_a_released_file_is_converted_and_checked(model, here):
    folder = Path("released")
    folder.mkdir()
    shutil.copy(DATA / "video-peers/larp_ar_fp.safetensors", folder / "model.safetensors")
    shutil.copy(DATA / "video-peers/larp_ar_fp.config.json", folder / "config.json")
    command("models", "convert", folder / "model.safetensors", "--tokenizer", model / "tokenizer.safetensors",
            "-o", "whole")  # fmt: skip
    assert json.loads(Path("whole/config.json").read_text())["kind"] == "frames"
    assert json.loads(command("models", "verify", "whole", "--json"))["ok"]
    assert "videos that go on from frames" in command("models", "show", "whole")
    write_gif(here / "bird.gif", shades(6))
    command("video", "--model", "whole", "--frames-from", "bird.gif", *QUIET)
    # The file does not tell its kind before it is read.
    words = command("video", "--model", folder, "--tokenizer", model, "--class", 1, code=4)
    assert "makes videos that go on from frames; a model that makes videos of classes is wanted" in words
    assert all(a != b for a, b in pairwise(shades(3)))
