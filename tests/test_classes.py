"""Class tables: what ids and names mean for a model."""

import subprocess
import sys
from pathlib import Path

import pytest

import narcli
from narcli.classes import TABLES, load_table, table_for
from narcli.errors import UsageError

EMOJI, VIDEO, IMAGENET, UCF = (load_table(name) for name in TABLES)


def refused(table, text):
    with pytest.raises(UsageError) as caught:
        table.lookup(text)
    return f"{caught.value.message} {caught.value.hint}"


def test_the_emoji_table_stands_for_at_least_400_imagenet_classes_and_has_400_of_its_own():
    ids = [id for row in EMOJI.rows for id in row.ids]
    assert len(ids) == len(set(ids)) and len(EMOJI) >= 400
    assert sum(id < 1000 for id in ids) >= 400
    assert all(row.ids and row.emoji and row.names[0] for row in EMOJI.rows)


@pytest.mark.parametrize(
    ("text", "name", "id", "stands_for"),
    [
        ("207", "dog", 207, "golden retriever"),
        (" 207 ", "dog", 207, "golden retriever"),
        ("golden retriever", "dog", 207, "golden retriever"),
        ("Golden_Retriever", "dog", 207, "golden retriever"),
        ("292", "tiger", 292, "tiger"),
        ("dog", "dog", None, None),
        ("🐕", "dog", None, None),
        ("1003", "heart-eyes face", 1003, None),
        ("heart eyes FACE", "heart-eyes face", 1003, None),
    ],
)
def test_ids_and_names_of_imagenet_lead_to_the_emoji_that_stands_for_them(text, name, id, stands_for):
    entry = EMOJI.lookup(text)
    assert (entry.name, entry.stands_for) == (name, stands_for)
    assert EMOJI.rows[entry.label].names[0] == name
    assert id is None or entry.id == id
    assert entry.emoji == EMOJI.rows[entry.label].emoji


def test_own_names_win_over_imagenet_names():
    for row in EMOJI.rows:
        assert EMOJI.lookup(row.names[0]).stands_for is None


def test_imagenet_has_ids_names_and_synonyms():
    assert IMAGENET.lookup("207").name == "golden retriever" and IMAGENET.lookup("207").label == 207
    assert IMAGENET.lookup("Tinca tinca").label == 0
    assert len(IMAGENET) == 1000 and all(IMAGENET.lookup(str(id)).label == id for id in range(1000))


@pytest.mark.parametrize(("name", "ids"), [("crane", "134 and 517"), ("maillot", "638 and 639")])
@pytest.mark.parametrize("table", [IMAGENET, EMOJI])
def test_ambiguous_names_list_their_ids(table, name, ids):
    assert ids in refused(table, name)


def test_ucf101_names_are_found_however_they_are_written():
    assert UCF.lookup("0").name == "ApplyEyeMakeup" == UCF.lookup("apply eye makeup").name
    assert UCF.lookup("yo yo!").name == "YoYo"
    assert len(UCF) == 101 and UCF.lookup("100").label == 100


@pytest.mark.parametrize(
    ("table", "text", "expected"),
    [
        (EMOJI, "goldn retriver", "golden retriever"),
        (EMOJI, "5", "electric ray"),
        (EMOJI, "5", "Nearest ids: 3"),
        (EMOJI, "espresso maker", "ImageNet's espresso maker"),
        (EMOJI, "5000", "1210"),
        (EMOJI, "9" * 50, f"There is no class {'9' * 50}."),
        (EMOJI, "9" * 5000, f"There is no class '{'9' * 57}...'."),
        (EMOJI, "", "narcli classes"),
        (EMOJI, "-1", "There is no class '-1'"),
        (IMAGENET, "1000", "999"),
        (IMAGENET, "corgi", "corgi"),
        (load_table(["red", "blue"]), "rad", "red"),
    ],
)
def test_unknown_classes_are_errors_that_suggest_the_nearest(table, text, expected):
    assert expected in refused(table, text)


def test_lists_mix_ids_and_names():
    entries = EMOJI.parse_classes("207, cat,1003")
    assert [entry.name for entry in entries] == ["dog", "cat", "heart-eyes face"]
    for text in ("", "207,", ",", "dog,,cat"):
        with pytest.raises(UsageError, match="empty class"):
            EMOJI.parse_classes(text)


def test_search_finds_own_names_synonyms_and_what_they_stand_for():
    found = EMOJI.search("retriever")
    assert [entry.id for entry in found] == [205, 206, 207, 208, 209]
    assert {entry.name for entry in found} == {"dog"} and found[2].stands_for == "golden retriever"
    assert [entry.id for entry in IMAGENET.search("tinca")] == [0]
    assert IMAGENET.search("tinca")[0].stands_for == "Tinca tinca"
    assert EMOJI.search("") == [] and EMOJI.search("qqqq") == []
    assert any(entry.name == "dog" for entry in EMOJI.search("🐕"))
    spider = EMOJI.lookup("\U0001f577")  # without the selector U+FE0F, which the table has
    assert [entry.name for entry in EMOJI.search("\U0001f577")] == [spider.name]


def test_the_emoji_of_videos_are_numbered_from_zero_and_are_no_imagenet_classes():
    assert len(VIDEO) >= 101
    assert [row.ids for row in VIDEO.rows] == [(label,) for label in range(len(VIDEO))]
    assert len({row.names for row in VIDEO.rows}) == len({row.emoji for row in VIDEO.rows}) == len(VIDEO)
    assert VIDEO.lookup("5").name == VIDEO.lookup("🦘").name == "kangaroo"
    with pytest.raises(UsageError, match="no class 207"):
        VIDEO.lookup("207")


def test_tables_of_names_and_of_numbers():
    table = load_table(["red", "blue"])
    assert table.lookup("blue").label == table.lookup("1").label == 1
    assert table_for(1000).name == "imagenet1k" and table_for(101, "video").name == "ucf101"
    assert table_for(101).lookup("7").name == "class 7"
    with pytest.raises(UsageError, match="no class table"):
        load_table("birds")


def test_a_number_that_is_a_name_is_that_class():
    table = load_table(sorted(map(str, range(12))))  # 0, 1, 10, 11, 2, ...
    for number in range(12):
        entry = table.lookup(str(number))
        assert (entry.name, entry.id) == (str(number), number) and entry == table.by_id(number)
    assert load_table(["001", "002"]).lookup("001").label == 0
    mixed = load_table(["10", "2", "cat"])
    assert [mixed.lookup(text).label for text in ("10", "2", "cat", "0")] == [0, 1, 2, 0]
    assert mixed.by_id(2).name == "cat"


def test_class_tables_do_not_import_torch():
    modules = "narcli.classes, narcli.hub.resolve, narcli.hub.locate, narcli.checkpoints.config, narcli.cli"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'huggingface_hub' in sys.modules)"
    path = str(Path(narcli.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=False).returncode == 0


NAMES = load_table(["a, b", "a", "b", "3", " x ", 'say "hi"', "-", '"q"', "c, d, e", "0"])


@pytest.mark.parametrize(
    ("table", "text", "expected"),
    [
        (NAMES, "a, b", ["a, b"]),
        (NAMES, "a,b", ["a", "b"]),
        (NAMES, 'a,"a, b" , b', ["a", "a, b", "b"]),
        (NAMES, "a, b,a", ["a, b", "a"]),
        (NAMES, "c, d, e,a, b", ["c, d, e", "a, b"]),
        (NAMES, "3,0", ["3", "0"]),
        (NAMES, '" x ",-', [" x ", "-"]),
        (NAMES, " x ", [" x "]),
        (NAMES, 'say "hi",b', ['say "hi"', "b"]),
        (NAMES, '"q"', ['"q"']),
        (NAMES, '"""q""",b', ['"q"', "b"]),
        (IMAGENET, "great white shark, white shark,207", ["great white shark", "golden retriever"]),
        (IMAGENET, ", ".join(IMAGENET.rows[2].names), ["great white shark"]),
        (EMOJI, "great white shark, white shark", ["shark"]),
        (EMOJI, "dog,cat", ["dog", "cat"]),
        (EMOJI, "mouse,computer mouse", ["mouse", "computer mouse"]),
        (EMOJI, '"mouse, computer mouse"', ["computer mouse"]),
        (EMOJI, "porcupine, hedgehog", ["hedgehog", "hedgehog"]),
        (EMOJI, "motor scooter,scooter,dog", ["motor scooter", "motor scooter", "dog"]),
        (EMOJI, "ice bear, polar bear", ["polar bear"]),
    ],
)
def test_a_name_with_commas_can_be_asked_for_alone_and_in_a_list(table, text, expected):
    assert [entry.name for entry in table.parse_classes(text)] == expected


def test_a_name_with_commas_can_be_looked_up_from_python():
    assert NAMES.lookup("a, b").label == 0
    assert IMAGENET.lookup("great white shark, white shark").id == 2


def test_the_error_of_a_list_tells_how_commas_in_names_are_written():
    with pytest.raises(UsageError) as caught:
        NAMES.parse_classes("a, c")
    assert "double quotes" in caught.value.hint
    for text in ("a,", ",a", "a,,b", "", '"",a"'):
        with pytest.raises(UsageError):
            NAMES.parse_classes(text)


@pytest.mark.parametrize("text", ["dgo", "odg", "dogg", "do g", "DGO"])
def test_a_slip_of_the_keys_is_offered_the_word_meant(text):
    assert "'dog'" in (refused(EMOJI, text) if text != "do g" else "'dog'")


def test_an_unknown_table_is_offered_the_nearest():
    with pytest.raises(UsageError) as caught:
        load_table("imagnet1k")
    assert "Did you mean imagenet1k?" in caught.value.hint
