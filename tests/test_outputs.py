"""Names of files are free and safe, whatever they are made of."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from narcli.errors import NarError, UsageError
from narcli.media.atomic import companion
from narcli.media.names import MAX_STEM, clean_name, default_name, resolve_outputs

DOG = {"class": 207, "class_name": "golden retriever", "seed": 42, "model": "emoji"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(output=None, samples=(DOG,), **options):
    options.setdefault("default", default_name("image", DOG))
    return [str(path) for path in resolve_outputs(output, samples, **options).paths]


def test_the_default_name_tells_class_and_seed():
    assert names() == ["nar-image_c207-golden_retriever_s42.png"]
    assert default_name("video", {"class": 3, "seed": 1}) == "nar-video_c{class}_s{seed}"
    assert default_name("image", {"class_name": "a red fox", "class": None}) == "nar-image_{class_name}"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("dog.png", "dog.png"),
        ("dog", "dog.png"),
        ("dog.PNG", "dog.PNG"),
        ("new/folder/", "new/folder/nar-image_c207-golden_retriever_s42.png"),
        ("there", "there/nar-image_c207-golden_retriever_s42.png"),
        (".", "nar-image_c207-golden_retriever_s42.png"),
        ("there/{class_name}.png", "there/golden_retriever.png"),
        ("{model}/{class}/{seed:06}", "emoji/207/000042.png"),
        ("{index}-{{x}}.png", "0-{x}.png"),
    ],
)
def test_output_is_a_file_a_folder_or_a_template(output, expected):
    Path("there").mkdir()
    assert names(output) == [expected]


def test_choosing_names_creates_nothing(here):
    names("a/b/", companions=("_frontier.gif",))
    assert list(here.iterdir()) == []


def test_braces_in_an_existing_folder_are_not_fields():
    Path("{odd}").mkdir()
    assert names("{odd}", default="x") == ["{odd}/x.png"]
    assert names("{odd}/", default="x") == ["{odd}/x.png"]


def test_the_date_is_a_date():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d\.png", names("{date}.png")[0])


def test_an_unknown_field_is_a_usage_error_with_a_suggestion():
    with pytest.raises(UsageError, match=r"no field {sed}") as raised:
        names("{sed}.png")
    assert raised.value.hint.startswith("Did you mean {seed}?")


@pytest.mark.parametrize(
    "output",
    [
        "{seed",
        "seed}",
        "{seed.__class__}",
        "{seed[0]}",
        "{seed!r}",
        "{}",
        "{seed:999999999}",
        "{seed:{seed}}",
    ],
)
def test_only_plain_fields_are_allowed(output):
    with pytest.raises(UsageError):
        names(output)


@pytest.mark.parametrize("output", ["dog.jpg", "{seed}.webp", "v1.5"])
def test_another_suffix_is_a_usage_error_that_names_the_choices(output):
    with pytest.raises(UsageError, match="which narcli does not write here") as raised:
        names(output)
    assert ".png" in raised.value.hint


def test_a_missing_folder_is_created_only_when_the_slash_says_that_it_is_one():
    with pytest.raises(UsageError, match="folder missing does not exist") as raised:
        names("missing/dog.png")
    assert "slash" in raised.value.hint
    assert names("missing/") == ["missing/nar-image_c207-golden_retriever_s42.png"]


def test_a_file_in_place_of_the_folder_is_a_usage_error():
    Path("file").write_text("")
    for output in ("file/dog.png", "file/deeper/", "file/{seed}.png"):
        with pytest.raises(UsageError, match="file is a file, not a folder"):
            names(output)


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(NarError, match="cannot be written to"):
        names()


def test_several_samples_with_one_name_are_numbered():
    assert names("dog.png", [DOG] * 3) == ["dog.png", "dog_1.png", "dog_2.png"]
    assert names("{index}.png", [DOG] * 3) == ["0.png", "1.png", "2.png"]


def test_names_that_differ_in_case_only_are_kept_apart():
    assert names("{class_name}", [{"class_name": "Dog"}, {"class_name": "dog"}]) == ["Dog.png", "dog_1.png"]


def test_a_taken_name_gets_a_number_unless_overwriting():
    Path("dog.png").write_text("")
    Path("dog_1.png").symlink_to("nowhere")
    assert names("dog.png") == ["dog_2.png"]
    assert names("dog.png", overwrite=True) == ["dog.png"]
    assert names("dog.png", [DOG] * 2, overwrite=True) == ["dog.png", "dog_1.png"]


def test_companions_share_the_number_of_their_picture():
    Path("dog_frontier.gif").write_text("")
    chosen = resolve_outputs("dog.png", [DOG], default="x", companions=("_frontier.gif", "_grid.png"))
    assert chosen.paths == (Path("dog_1.png"),)
    assert chosen.companions == (Path("dog_1_frontier.gif"), Path("dog_1_grid.png"))
    assert chosen.companions[0] == companion(chosen.paths[0], "_frontier.gif")


def test_a_thousand_samples_of_one_name_stay_quick():
    assert names("dog.png", [DOG] * 1000)[-1] == "dog_999.png"


values = st.one_of(st.text(max_size=300), st.sampled_from(["..", ".", "", "/etc/passwd", "a/../../b", "CON"]))


@example("..\\..\\x")
@example("\ud800")
@example("con.txt")
@example("ß" * 300)
@given(values)
def test_a_cleaned_name_is_one_safe_component(value):
    name = clean_name(value)
    assert name and name not in (".", "..")
    assert not re.search(r"[/\\:*?\"<>|\x00-\x1f\x7f]", name)
    assert name[0] not in ".-" and name[-1] not in "."
    assert len(name.encode("utf-8", "surrogatepass")) <= MAX_STEM + 1
    assert name.upper().split(".")[0] not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT1"}
    name.encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values, values, st.sampled_from(["{class_name}", "out/{class_name}-{model}", "out/{class_name}/{model}"])
)
def test_values_of_a_template_never_leave_the_folder(tmp_path, class_name, model, template):
    sample = {"class_name": class_name, "model": model}
    (path,) = resolve_outputs(f"{tmp_path}/{template}.png", [sample], default="x").paths
    assert len(path.parts) == len(tmp_path.parts) + template.count("/") + 1
    assert path.resolve().is_relative_to(tmp_path.resolve())
    assert ".." not in path.parts
    assert all(len(part.encode()) < 200 for part in path.relative_to(tmp_path).parts)


@pytest.mark.parametrize(
    "output", ["/dev/null", "/dev/stdout", "/dev/fd/1", "-", "pipe", "pipe.png", "/dev/x"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_device_or_a_pipe_is_no_output(here, output, overwrite):
    for name in ("pipe", "pipe.png"):
        os.mkfifo(here / name)
    with pytest.raises(UsageError, match="narcli writes files"):
        resolve_outputs(output, [DOG], default="x", overwrite=overwrite)
    assert sorted(path.name for path in here.iterdir()) == ["pipe", "pipe.png"]
