"""Training of an encoder of word pieces that finds the picture of a phrase, after a sentence encoder.

Captions alone teach only their own words. A much larger sentence encoder knows others: the small encoder
learns its vectors of many phrases (distillation, arXiv 1503.02531), and the picture of each phrase. Pieces
and their first embeddings come from the sentence encoder, so words that no phrase has are meaningful too.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.names import READ
from ..checkpoints.text_encoder import T5Encoder
from .loop import TrainSettings, train
from .text import HEAD_DIM, encode, sizes_of

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # numbered 0, 1, 2 in a T5
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789!?.,:;'\"-+=%$_^")  # always in the vocabulary
SIMILARITY = 0.05  # temperature of the similarities within a batch
PICTURES = 0.5  # weight of the loss over pictures; that of the vectors is 3
TYPOS = 0.25  # share of drawn phrases that get a typo, if they have a long word
SORTED = 8  # batches drawn at once and sorted by length, for little padding


@dataclass(frozen=True)
class Phrases:
    """Phrases with the targets of a teacher.

    Args:
        texts: cleaned phrases, N of them.
        often: float (N,), relative frequencies of drawing them.
        vectors: float (N, D), the teacher's vectors, of norm 1.
        owners: int64 (N,), picture of each phrase.
        likely: int64 (N, K), pictures that it may mean; -1 fills up the row.
        shares: float (N, K), probabilities of these pictures.
    """

    texts: Sequence[str]
    often: Tensor
    vectors: Tensor
    owners: Tensor
    likely: Tensor
    shares: Tensor

    @classmethod
    def load(cls, folder: Path) -> Phrases:
        """Read a folder that ``scripts/prepare_phrases.py`` wrote."""
        lines = (folder / "phrases.tsv").read_text("utf-8").splitlines()
        texts, rows, owners, often = zip(*(line.split("\t") for line in lines), strict=True)
        row = np.array(rows, np.int64)
        vectors, likely, shares = (
            torch.from_numpy(np.load(folder / f"{name}.npy")[row]) for name in ("vectors", "likely", "shares")
        )
        return cls(
            texts, torch.tensor([float(each) for each in often]), vectors.float(),
            torch.tensor([int(each) for each in owners]), likely.long(), shares.float(),
        )  # fmt: skip

    def digest(self) -> str:
        """Hash of texts and tensors."""
        hasher = sha256("\n".join(self.texts).encode())
        for tensor in (self.often, self.vectors, self.owners, self.likely, self.shares):
            hasher.update(tensor.numpy().tobytes())
        return hasher.hexdigest()


def word_pieces(texts: Iterable[str], vocabulary: Sequence[str]) -> tuple[Any, list[int]]:
    """Make a tokenizer of the word pieces in phrases, in the format of ``transformers``.

    Args:
        texts: the phrases.
        vocabulary: pieces of a BERT, in its order; "##" before those within a word.

    Returns:
        The tokenizer, which adds an end token, and the indices in ``vocabulary`` of its pieces, which follow
        the three special ones.
    """
    from tokenizers import Tokenizer
    from tokenizers.decoders import WordPiece as Joined
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    def reader(pieces: dict[str, int]) -> Tokenizer:
        tokenizer = Tokenizer(WordPiece(pieces, unk_token=UNKNOWN, max_input_chars_per_word=100))
        tokenizer.normalizer = BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = BertPreTokenizer()
        tokenizer.decoder = Joined(prefix="##")
        return tokenizer

    special = {PAD: 0, END: 1, UNKNOWN: 2}
    every = {piece: number for number, piece in enumerate(vocabulary)} | {UNKNOWN: len(vocabulary)}
    occurring = {piece for row in reader(every).encode_batch(list(texts)) for piece in row.tokens}
    kept = [
        place
        for place, piece in enumerate(vocabulary)
        if piece in occurring or piece.removeprefix("##") in LETTERS
    ]
    pieces = special | {vocabulary[place]: number for number, place in enumerate(kept, len(special))}
    tokenizer = reader(pieces)
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, special[END])])
    names = {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names), kept


def word_encoder(tokenizer: Any, embeddings: Tensor, width: int, layers: int) -> T5Encoder:
    """Make a T5 encoder with fresh weights, except for its token embeddings.

    Args:
        tokenizer: of ``word_pieces``.
        embeddings: (V, D) of its pieces, from a larger encoder; D at least ``width``. Their first principal
            components, scaled to a variance of 1, initialise the encoder's own.
        width: of the model and its features, a multiple of ``HEAD_DIM``.
        layers: layers of attention and a gated feed-forward three times as wide.
    """
    from transformers import T5Config, T5EncoderModel

    sizes = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=HEAD_DIM, num_heads=width // HEAD_DIM,
        num_layers=layers, d_ff=3 * width, feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    model = T5EncoderModel(sizes)
    centred = (embeddings - embeddings.mean(0)).double()
    _, directions = torch.linalg.eigh(centred.T @ centred)
    components = centred @ directions[:, -width:]
    with torch.no_grad():
        model.shared.weight[-len(embeddings) :] = (components / components.std()).float()
    return T5Encoder(model, tokenizer)


class Student(nn.Module):
    """An encoder that predicts the teacher's vector and the picture of a phrase, from the mean of its states.

    A picture's vector is the sum of those of its parts, subject and attributes. So a picture that is never a
    target has one too, made of parts of other pictures.

    Args:
        encoder: encoder to train.
        parts: (P, K) int64, numbers of the parts of each picture; -1 fills up the row.
        vectors: (numbers, D), initial vectors of the parts.
    """

    numbers: Tensor

    def __init__(self, encoder: T5Encoder, parts: Tensor, vectors: Tensor) -> None:
        super().__init__()
        self.encoder = encoder.model
        self.meaning = nn.Linear(encoder.width, vectors.shape[1])
        self.look = nn.Linear(encoder.width, vectors.shape[1])
        self.parts = nn.Parameter(vectors.clone())
        self.log_scale = nn.Parameter(torch.tensor(20.0).log())
        self.register_buffer("numbers", parts, persistent=False)

    def pictures(self) -> Tensor:
        """Vectors of all pictures, (P, D) of norm 1."""
        there = (self.numbers >= 0)[..., None]
        return F.normalize((self.parts[self.numbers.clamp_min(0)] * there).sum(1), dim=-1)

    def forward(self, ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Read B phrases (token ids): vectors (B, D), and logits over pictures (B, P)."""
        states, seen = encode(self.encoder, ids)
        mean = (states.float() * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        looks = F.normalize(self.look(mean).float(), dim=-1)
        vectors = F.normalize(self.meaning(mean).float(), dim=-1)
        return vectors, self.log_scale.exp() * (looks @ self.pictures().T)


def start_of_parts(phrases: Phrases, parts: Tensor) -> Tensor:
    """Initial vectors of parts: a subject has the mean of its pictures' phrases, attributes are near zero.

    Args:
        phrases: with the teacher's vectors.
        parts: as ``Student``; the first part of a picture is its subject, and is no attribute of another.

    Returns:
        (numbers, D).
    """
    subjects = parts[phrases.owners, 0]
    start = 0.02 * torch.randn(int(parts.max()) + 1, phrases.vectors.shape[1])
    # Attributes say little of a subject, so pictures without any weigh as much as all others together.
    plain = 1 + 99 * (parts[phrases.owners, 1:] < 0).all(1).float()
    weights = (phrases.often * plain)[:, None]
    total = torch.zeros_like(start).index_add_(0, subjects, weights * phrases.vectors)
    return start + F.normalize(total, dim=1)


def distillation(
    vectors: Tensor, logits: Tensor, target: Tensor, owners: Tensor, likely: Tensor, shares: Tensor
) -> Tensor:
    """Compute the loss of B phrases.

    Args:
        vectors: (B, D) of the student.
        logits: (B, P) over pictures.
        target: (B, D) of the teacher.
        owners: (B,) pictures that own the phrases.
        likely: (B, K) as in ``Phrases``.
        shares: (B, K) as in ``Phrases``.
    """
    apart = 3 * (1 - (vectors * target).sum(1)).mean()
    alone = torch.eye(len(vectors), dtype=torch.bool)
    similar, reference = ((each @ each.T / SIMILARITY).masked_fill(alone, -1e4) for each in (vectors, target))
    relations = F.kl_div(
        similar.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="batchmean"
    )
    likelihoods = logits.log_softmax(1)
    owned = -likelihoods.gather(1, owners[:, None]).mean()
    ambiguity = -(likelihoods.gather(1, likely.clamp_min(0)) * shares).sum(1)
    entropy = -torch.special.entr(shares).sum(1)
    return apart + relations + PICTURES * 0.5 * (owned + (ambiguity + entropy).mean())


def draw(often: Tensor, lengths: Tensor, settings: TrainSettings, step: int) -> Tensor:
    """Draw the phrases of a step with replacement, of similar length within a batch: (B,)."""
    turn, place = divmod(step, SORTED)
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + turn)
    drawn = torch.multinomial(often, SORTED * settings.batch_size, replacement=True, generator=generator)
    batches = drawn[lengths[drawn].argsort()].view(SORTED, -1)
    return batches[torch.randperm(SORTED, generator=generator)[place]]


def typo(text: str, rng: random.Random) -> str:
    """Drop, double, swap or exchange a letter of a long word, not its first one; "" without such a word."""
    words = text.split(" ")
    places = [place for place, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not places:
        return ""
    place = rng.choice(places)
    word, at = words[place], rng.randrange(1, len(words[place]) - 1)
    letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
    words[place] = rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + letter + word[at + 1 :],
        )
    )
    return " ".join(words) if words[place] != word else ""


def train_words(
    encoder: T5Encoder, phrases: Phrases, parts: Tensor, targets: Tensor, settings: TrainSettings,
    folder: Path, tokens: int = READ, quiet: bool = False,
) -> Student:  # fmt: skip
    """Train an encoder, in place; ``loop.train`` lists the files in ``folder``.

    Args:
        encoder: of ``word_encoder``.
        phrases: training data.
        parts: (P, K) of all pictures, as in ``Student``.
        targets: (P,) bool, pictures that phrases may show; others are left out of the loss.
        settings: of the optimisation.
        folder: folder of the run.
        tokens: most tokens of a phrase, with the end token.
        quiet: no progress display.
    """
    torch.manual_seed(settings.seed)

    def read(texts: Sequence[str]) -> list[Tensor]:
        rows = encoder.tokenizer(list(texts)).input_ids
        return [torch.tensor(row if len(row) <= tokens else [*row[: tokens - 1], row[-1]]) for row in rows]

    ids = read(phrases.texts)
    lengths = torch.tensor([len(row) for row in ids])
    student = Student(encoder, parts, start_of_parts(phrases, parts)).train()
    nowhere, known = ~targets, frozenset(phrases.texts)

    def loss_of(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        picked = draw(phrases.often, lengths, settings, step)
        rng, rows = random.Random(settings.seed * 1_000_003 + step), [ids[index] for index in picked.tolist()]
        typos = [typo(phrases.texts[index], rng) if rng.random() < TYPOS else "" for index in picked.tolist()]
        wrong = {place: text for place, text in enumerate(typos) if text and text not in known}
        for place, row in zip(wrong, read(list(wrong.values())) if wrong else (), strict=True):
            rows[place] = row
        vectors, logits = student(rows)
        logits = logits.masked_fill(nowhere, -1e4)
        columns = (phrases.vectors, phrases.owners, phrases.likely, phrases.shares)
        batch = [column[picked] for column in columns]
        right = (logits.detach().argmax(1) == batch[1]).float().mean()
        cosine = (vectors.detach() * batch[0]).sum(1).mean()
        return distillation(vectors, logits, *batch), {"cosine": cosine, "right": right}

    about = {
        "encoder": sizes_of(encoder),
        "data": phrases.digest(),
        "typos": TYPOS,
        "parts": sha256(parts.numpy().tobytes()).hexdigest(),
    }
    train(student, loss_of, settings, folder, lambda *_: None, about=about, quiet=quiet)
    return student.eval()
