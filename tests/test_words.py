"""The encoder that reads word pieces: its tokenizer, what it starts from and what it learns."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from narcli.checkpoints.text_encoder import T5Encoder
from narcli.training.loop import TrainSettings
from narcli.training.words import (
    Phrases,
    Student,
    distillation,
    draw,
    start_of_parts,
    train_words,
    typo,
    word_encoder,
    word_pieces,
)

VOCABULARY = [
    "[PAD]",
    "red",
    "blue",
    "cat",
    "dog",
    "house",
    "##s",
    "ap",
    "##ple",
    *"abcdehilnopstux",
    "##e",
    "##l",
    "##x",
]
TEXTS = ["red cat", "blue cat", "red dogs", "blue dog", "apple"]


def settings(**changes):
    return TrainSettings(**{"steps": 4, "batch_size": 4, "learning_rate": 3e-3, "compile": False} | changes)


def phrases(**changes):
    torch.manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(5, 96), dim=1)
    return Phrases(
        **{
            "texts": TEXTS,
            "often": torch.ones(5),
            "vectors": vectors,
            "owners": torch.tensor([0, 1, 2, 2, 3]),
            "likely": torch.tensor([[0, -1], [1, -1], [2, 0], [2, 1], [3, -1]]),
            "shares": torch.tensor([[1, 0], [1, 0], [0.7, 0.3], [0.7, 0.3], [1, 0]]),
        }
        | changes
    )


# Subjects 0, 1, 2 and the colours 3, 4; the last picture is no phrase's.
PARTS = torch.tensor([[0, 3], [0, 4], [1, -1], [2, -1], [1, 3]])


def encoder(layers=1):
    torch.manual_seed(0)
    tokenizer, kept = word_pieces(TEXTS, VOCABULARY)
    return word_encoder(tokenizer, torch.randn(len(VOCABULARY), 96)[kept], 64, layers)


def test_pieces_are_those_that_phrases_have_and_letters():
    tokenizer, kept = word_pieces(TEXTS, VOCABULARY)
    assert [VOCABULARY[place] for place in kept] == tokenizer.convert_ids_to_tokens(range(3, len(tokenizer)))
    assert "house" not in tokenizer.get_vocab() and "##ple" in tokenizer.get_vocab()
    assert tokenizer.convert_ids_to_tokens(tokenizer("Red apples").input_ids) == [
        "red",
        "ap",
        "##ple",
        "##s",
        "</s>",
    ]
    assert "<unk>" not in tokenizer.convert_ids_to_tokens(tokenizer("axel").input_ids)


def test_an_encoder_of_pieces_is_loaded_as_transformers_saved_it(tmp_path):
    made = encoder()
    made.save(tmp_path / "encoder")
    loaded = T5Encoder.load(tmp_path / "encoder", torch.float32)
    text = "a red dog apples"
    assert loaded.tokenizer(text).input_ids == made.tokenizer(text).input_ids
    assert torch.equal(loaded.encode(text, 40).features, made.encode(text, 40).features)
    cut = loaded.encode(text, 4)
    assert len(cut.features) == 4 and cut.dropped == "apples"


def test_embeddings_start_as_the_principal_components_of_the_larger_encoder():
    tokenizer, kept = word_pieces(TEXTS, VOCABULARY)
    table = torch.randn(len(kept), 128) * torch.tensor([1.0] * 64 + [1e-4] * 64)
    own = word_encoder(tokenizer, table, 64, 1).model.shared.weight[3:]
    assert own.std().item() == pytest.approx(1, rel=1e-3)
    # All distances stay, as 64 components hold nearly all of the variance.
    ratio = torch.pdist(own) / torch.pdist(table)
    assert (ratio.max() / ratio.min()).item() == pytest.approx(1, rel=1e-3)


def test_a_picture_that_is_no_target_has_the_vectors_of_its_parts():
    student = Student(encoder(), PARTS, start_of_parts(phrases(), PARTS))
    expected = torch.nn.functional.normalize(student.parts[1] + student.parts[3], dim=0)
    assert torch.allclose(student.pictures()[4], expected)
    vectors, logits = student([torch.tensor([3, 4, 1]), torch.tensor([3, 1])])
    assert vectors.shape == (2, 96) and logits.shape == (2, 5)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2))


def test_the_loss_is_least_where_the_student_says_what_the_teacher_says():
    known = phrases()
    shares = torch.zeros(5, 5).scatter_add_(1, known.likely.clamp_min(0), known.shares)
    wanted = (known.vectors, known.owners, known.likely, known.shares)
    right = distillation(known.vectors, (shares + 1e-9).log(), *wanted)
    # Half of the picture loss asks for the owner alone, which the teacher is not sure of twice.
    assert right.item() == pytest.approx(0.25 * 2 / 5 * -np.log(0.7), abs=1e-4)
    assert distillation(known.vectors.roll(1, 0), (shares + 1e-9).log(), *wanted) > right + 1
    assert distillation(known.vectors, torch.zeros(5, 5), *wanted) > right + 0.2


def test_a_batch_depends_on_its_step_and_phrases_are_drawn_as_often_as_they_say():
    often, lengths = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1, 2, 3])
    chosen = settings(batch_size=500)
    batches = [draw(often, lengths, chosen, step) for step in range(16)]
    assert torch.equal(batches[5], draw(often, lengths, chosen, 5))
    counts = torch.cat(batches).bincount(minlength=3)
    assert counts[0] == 0 and counts[2] / counts[1] == pytest.approx(3, rel=0.15)


def test_it_learns_phrases_by_heart_and_goes_on_where_it_stopped(tmp_path):
    known, targets = phrases(), torch.tensor([True, True, True, True, False])
    chosen = settings(steps=200, batch_size=16, save_every=200, bfloat16=False)
    small = encoder(layers=2)
    student = train_words(small, known, PARTS, targets, chosen, tmp_path, quiet=True)
    ids = [torch.tensor(row) for row in small.tokenizer(TEXTS).input_ids]
    with torch.inference_mode():
        vectors, logits = student(ids)
    assert torch.equal(logits[:, :4].argmax(1), known.owners)
    assert (vectors * known.vectors).sum(1).min() > 0.9
    again = train_words(encoder(layers=2), known, PARTS, targets, chosen, tmp_path, quiet=True)
    assert all(map(torch.equal, student.state_dict().values(), again.state_dict().values()))


def test_phrases_are_read_as_the_script_writes_them(tmp_path):
    (tmp_path / "phrases.tsv").write_text("cat\t1\t7\t2\nct\t1\t7\t0.5\n", "utf-8")
    np.save(tmp_path / "vectors.npy", np.eye(2, 4, dtype=np.float16))
    np.save(tmp_path / "likely.npy", np.array([[3, -1], [7, 9]], np.int16))
    np.save(tmp_path / "shares.npy", np.array([[1, 0], [0.5, 0.5]], np.float16))
    known = Phrases.load(tmp_path)
    assert (
        known.texts == ("cat", "ct") and known.owners.tolist() == [7, 7] and known.often.tolist() == [2, 0.5]
    )
    assert torch.equal(known.vectors, torch.eye(2, 4)[[1, 1]]) and known.likely.tolist() == [[7, 9]] * 2


# --- the phrases of the built-in model -----------------------------------------------------------


@pytest.fixture(scope="module")
def prepare():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "scripts")
        import prepare_phrases

        yield prepare_phrases


def test_keywords_are_cleaned_and_counted(prepare):
    words = prepare.usable(["Hot_Dog", "hot-dog", "dog", "x", ":)", "sausage " * 20])
    assert words == {"hot dog": 2, "dog": 1}


@given(st.text("abc ", min_size=1, max_size=30), st.integers(0, 99))
def test_a_typo_changes_one_long_word_and_little_of_it(text, seed):
    wrong = typo(text, random.Random(seed))
    before, after = text.split(" "), wrong.split(" ")
    if not wrong:
        return
    (place,) = (place for place, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1])
    assert len(before[place]) > 4 and abs(len(before[place]) - len(after[place])) < 2
    assert before[place][0] == after[place][0]


def test_each_phrase_has_its_pictures_and_names_come_first(prepare):
    from prepare_emoji_text import Item

    items = [
        Item("1f436", "1f436", "dog", "dog", keywords=["pet"]),
        Item("1f431", "1f431", "cat", "cat", keywords=["pet", "dog"]),
        Item("1f9d1", "1f9d1", "cook", "cook", gender="person", keywords=["chef"]),
        Item("1f469", "1f469", "woman cook", "cook", gender="woman", keywords=["chef"]),
        Item("1f469-1f3ff", "1f469-1f3ff", "woman cook", "cook", gender="woman", tones=("dark",)),
    ]
    words = {
        place: list(prepare.usable([item.label, *item.keywords])) for place, item in enumerate(items[:4])
    }
    phrases = prepare.make_phrases(items, [0, 1, 2, 3, 4], words, ["pet", "wolf"])
    assert phrases["dog"].owners == [0]  # its name, though a keyword of the cat as well
    assert phrases["pet"].owners == [0, 1] and phrases["pet"].word == "pet"
    assert phrases["chef"].owners == [2, 3]
    assert phrases["wolf"].owners == [0, 1, 2, 3] and not phrases["wolf"].word
    assert phrases["woman cook, dark skin tone"].owners == [4]
    gendered = [text for text in phrases if "chef" in text and "skin" in text]
    assert gendered and all(phrases[text].owners == [4] for text in gendered)
    assert all(index < len(items) for phrase in phrases.values() for index in phrase.owners)
