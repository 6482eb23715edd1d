"""The tokenizer, on any text that hypothesis finds."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabook.language.tokenizer import WordTokenizer

TRAINED = WordTokenizer.train(["SELECT name FROM cities WHERE country = 'peru'", "how many cities are in peru?"], size=12)
words = st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=10)
# Text made of pieces that the vocabulary knows, in whole and in part, between arbitrary text.
mixed = st.lists(st.sampled_from([*TRAINED.words, "cities", "SELECTED", " ", "\n", "'"]) | st.text(max_size=4)).map("".join)


@given(st.text() | mixed)
def test_decoding_an_encoding_gives_the_text_back(text):
    assert TRAINED.decode(TRAINED.encode(text)) == text


@given(words, st.text())
def test_any_vocabulary_encodes_any_text(vocabulary, text):
    tokenizer = WordTokenizer(vocabulary)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text() | mixed)
def test_ids_stay_in_the_vocabulary_and_never_end_the_text(text):
    ids = TRAINED.encode(text)
    assert all(0 <= token < TRAINED.vocab_size for token in ids)
    assert TRAINED.end_id not in ids


@given(st.text() | mixed)
def test_an_empty_vocabulary_leaves_the_bytes(text):
    assert WordTokenizer([]).encode(text) == list(text.encode())


@pytest.mark.parametrize("text", [" zebra", " naïve", "🦓", "٣"])
def test_an_unknown_word_falls_back_to_its_bytes(text):
    assert TRAINED.encode(f"SELECT{text} FROM") == [*TRAINED.encode("SELECT"), *text.encode(), *TRAINED.encode(" FROM")]


def test_a_known_word_is_one_token_together_with_its_space():
    assert len(TRAINED.encode(" cities")) == 1
    assert len(TRAINED.encode(" cities in peru")) == 3


@given(st.lists(st.sampled_from(["to", " be", " or", "7", "?"]), max_size=30), st.integers(0, 6))
def test_training_keeps_the_most_frequent_pieces(pieces, size):
    counts = Counter(pieces)
    kept = WordTokenizer.train(pieces, size).words
    assert len(kept) == min(size, len(counts))
    assert all(counts[word] >= counts[other] for word in kept for other in counts if other not in kept)


def test_training_does_not_depend_on_the_order_of_texts():
    texts = ["b a", "a c", "c b d"]
    assert WordTokenizer.train(texts, 4).words == WordTokenizer.train(texts[::-1], 4).words


@given(words, st.text())
def test_saving_and_loading_keeps_every_id(tmp_path_factory, vocabulary, text):
    path = tmp_path_factory.getbasetemp() / "vocabulary.json"
    tokenizer = WordTokenizer(vocabulary)
    tokenizer.save(path)
    loaded = WordTokenizer.load(path)
    assert loaded.words == tokenizer.words
    assert loaded.encode(text) == tokenizer.encode(text)


def test_the_end_token_decodes_to_nothing():
    assert TRAINED.decode([*TRAINED.encode("in peru"), TRAINED.end_id]) == "in peru"


def test_bytes_that_are_no_text_become_the_replacement_character():
    assert TRAINED.decode([0xFF, *TRAINED.encode("a")]) == "\N{REPLACEMENT CHARACTER}a"


@pytest.mark.parametrize("token", [-1, TRAINED.vocab_size])
def test_an_id_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ValueError, match=f"token ids run from 0 to {TRAINED.vocab_size - 1}, got {token}"):
        TRAINED.decode([token])


@pytest.mark.parametrize("vocabulary", [["a", "b", "a"], ["a", ""]])
def test_words_must_be_distinct_and_not_empty(vocabulary):
    with pytest.raises(ValueError, match="distinct and not empty"):
        WordTokenizer(vocabulary)


def test_a_lone_surrogate_has_no_bytes_and_says_so():
    with pytest.raises(UnicodeEncodeError):
        TRAINED.encode("a\ud800")
