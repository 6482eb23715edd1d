"""The tokenizer, on any text that hypothesis finds, and against the library that trained the book's merges."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from lorabook.language.backbone import load_backbone
from lorabook.language.tokenizer import PIECE, BytePairTokenizer

TEXTS = ["SELECT name FROM cities WHERE country = 'peru'", "how many cities are in peru?"] * 2
TRAINED = BytePairTokenizer.train(TEXTS, vocab_size=290)
# Text made of what the merges know, in whole and in part, between arbitrary text.
mixed = st.lists(st.sampled_from(["cities", " cities", "SELECTED", " peru", " ", "\n", "\n\n    ", "'", "12"]) | st.text(max_size=4)).map(
    "".join
)
pairs = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), unique=True, max_size=8)


def library(tokenizer: BytePairTokenizer) -> Tokenizer:
    """The same merges in the library ``tokenizers``, which writes each byte as one printable character."""
    alphabet = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    written = {byte: chr(byte) for byte in alphabet}
    written |= {byte: chr(256 + index) for index, byte in enumerate(byte for byte in range(256) if byte not in alphabet)}
    names = [*(written[byte] for byte in range(256)), "<end>"]
    for left, right in tokenizer.merges:
        names.append(names[left] + names[right])
    merges = [(names[left], names[right]) for left, right in tokenizer.merges]
    other = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=merges))
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECE), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    other.decoder = decoders.ByteLevel()
    return other


@pytest.fixture(scope="module")
def books():
    return load_backbone()[1]


@pytest.fixture(scope="module")
def books_library(books):
    return library(books)


@given(st.text() | mixed)
def test_decoding_an_encoding_gives_the_text_back(text):
    assert TRAINED.decode(TRAINED.encode(text)) == text


@given(pairs, st.text() | mixed)
def test_any_merges_encode_any_text(merges, text):
    tokenizer = BytePairTokenizer(merges)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text() | mixed)
def test_ids_stay_in_the_vocabulary_and_never_end_the_text(text):
    ids = TRAINED.encode(text)
    assert all(0 <= token < TRAINED.vocab_size for token in ids)
    assert TRAINED.end_id not in ids


@given(st.text() | mixed)
def test_without_merges_the_bytes_remain(text):
    assert BytePairTokenizer([]).encode(text) == list(text.encode())


@given(st.text() | mixed)
def test_the_library_that_trained_the_merges_encodes_alike(books, books_library, text):
    assert books.encode(text) == books_library.encode(text).ids


def test_the_library_encodes_real_programs_alike(books, books_library):
    for text in (json.__doc__, Path(json.__file__).read_text(encoding="utf-8"), "\tif x:\n\t\treturn  None  \r\n\n\n", "naïve ٣ 🦓 x²"):
        assert books.encode(text) == books_library.encode(text).ids
        assert books.decode(books.encode(text)) == text


def test_a_digit_is_a_token_so_that_numbers_are_copied_digit_by_digit(books):
    assert len(books.encode(" 4096")) == 4
    assert [books.decode([token]) for token in books.encode("1234")] == ["1", "2", "3", "4"]


def test_the_books_vocabulary_knows_common_words_whole(books):
    for word in (" the", " SELECT", " FROM", " return", " self"):
        assert len(books.encode(word)) == 1


@given(st.lists(st.sampled_from(["to", " be", " or", "not", " beer"]), min_size=1, max_size=30))
def test_the_first_merge_joins_a_most_frequent_pair(pieces):
    text = "".join(pieces)
    tokenizer = BytePairTokenizer.train([text], vocab_size=258)
    words = Counter(piece.encode() for piece in re.findall(PIECE, text))
    counts = Counter()
    for word, count in words.items():
        for pair in pairwise(word):
            counts[pair] += count
    assert counts[tokenizer.merges[0]] == max(counts.values())


def test_training_does_not_depend_on_the_order_of_texts():
    texts = ["banana band", "bandana", "an ant"]
    assert BytePairTokenizer.train(texts, 270).merges == BytePairTokenizer.train(texts[::-1], 270).merges


def test_training_stops_when_no_pair_is_left():
    tokenizer = BytePairTokenizer.train(["abc"], vocab_size=400)
    assert tokenizer.encode("abc") == [tokenizer.vocab_size - 1]
    assert tokenizer.vocab_size == 259


@given(pairs, st.text())
def test_saving_and_loading_keeps_every_id(tmp_path_factory, merges, text):
    path = tmp_path_factory.getbasetemp() / "vocabulary.json"
    tokenizer = BytePairTokenizer(merges)
    tokenizer.save(path)
    loaded = BytePairTokenizer.load(path)
    assert loaded.merges == tokenizer.merges
    assert loaded.encode(text) == tokenizer.encode(text)


def test_an_encoding_does_not_change_the_next_one():
    first = TRAINED.encode(" cities")
    first.append(7)
    assert TRAINED.encode(" cities") == first[:-1]


def test_the_end_token_decodes_to_nothing():
    assert TRAINED.decode([*TRAINED.encode("in peru"), TRAINED.end_id]) == "in peru"


def test_bytes_that_are_no_text_become_the_replacement_character():
    assert TRAINED.decode([0xFF, *TRAINED.encode("a")]) == "\N{REPLACEMENT CHARACTER}a"


@pytest.mark.parametrize("token", [-1, TRAINED.vocab_size])
def test_an_id_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ValueError, match=f"token ids run from 0 to {TRAINED.vocab_size - 1}, got {token}"):
        TRAINED.decode([token])


@pytest.mark.parametrize("merges", [[(1, 257)], [(-1, 3)], [(1, 256)], [(1, 2), (258, 1)]])
def test_a_merge_joins_earlier_ids(merges):
    with pytest.raises(ValueError, match=r"merge \d must join ids below"):
        BytePairTokenizer(merges)


def test_a_merge_stands_once():
    with pytest.raises(ValueError, match="a pair stands twice"):
        BytePairTokenizer([(1, 2), (3, 4), (1, 2)])


def test_a_lone_surrogate_has_no_bytes_and_says_so():
    with pytest.raises(UnicodeEncodeError):
        TRAINED.encode("a\ud800")
