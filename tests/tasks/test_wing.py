"""What all tasks have in common: the face by which the command line uses them."""

import subprocess
import sys
from pathlib import Path

import pytest

from lorabook.language.likelihood import IGNORE
from lorabook.language.tokenizer import BytePairTokenizer
from lorabook.tasks import TASKS, sentences, splits, tables

ASSETS = Path(__file__).parents[2] / "assets"
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
every_split = pytest.mark.parametrize("split", splits.SPLITS)


def test_the_registry_names_the_modules():
    assert {name: task.__name__ for name, task in TASKS.items()} == {name: f"lorabook.tasks.{name}" for name in TASKS}
    assert set(TASKS) == {"text_to_sql", "table_to_text", "reading"}
    with pytest.raises(TypeError):
        TASKS["other"] = TASKS["reading"]


def test_importing_the_package_does_not_import_the_tasks():
    asked = "import sys, lorabook; print([name for name in sys.modules if name.startswith('lorabook.tasks')])"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@every_task
def test_training_comes_first_and_unseen_tables_last(task):
    assert tuple(task.SPLITS) == ("train", "validation", "test", "unseen")


@every_task
@every_split
def test_a_seed_decides_the_examples_and_a_smaller_count_their_beginning(task, split):
    drawn = task.examples(split, 60, seed=4)
    assert len(drawn) == 60
    assert task.examples(split, 60, seed=4) == drawn
    assert task.examples(split, 20, seed=4) == drawn[:20]
    assert task.examples(split, 60, seed=5) != drawn
    assert task.examples(split, 0, seed=4) == []


@every_task
def test_splits_never_share_a_prompt(task):
    prompts = {split: {example.prompt for seed in (0, 1) for example in task.examples(split, 600, seed=seed)} for split in task.SPLITS}
    everything = [prompt for found in prompts.values() for prompt in found]
    assert len(set(everything)) == len(everything)


@every_task
@pytest.mark.parametrize("split", ["validation", "test", "unseen"])
def test_held_out_prompts_are_distinct(task, split):
    assert len({example.prompt for example in task.examples(split, 500, seed=1)}) == 500


@every_task
@every_split
def test_an_encoded_example_asks_for_the_target_and_the_end_alone(task, split, tokenizer):
    for example in task.examples(split, 40, seed=2):
        inputs, labels = task.encode(example, tokenizer)
        n_prompt = len(tokenizer.encode(example.prompt))
        assert len(inputs) == len(labels)
        assert tokenizer.decode(inputs) == example.prompt + example.target
        assert inputs[:n_prompt] == tokenizer.encode(example.prompt)
        assert set(labels[: n_prompt - 1]) == {IGNORE}
        assert labels[n_prompt - 1 : -1] == inputs[n_prompt:]  # each position is to say the next token
        assert labels[-1] == tokenizer.end_id


@every_task
@every_split
def test_the_gold_answers_of_a_model_score_one_and_keep_their_order(task, split, tokenizer, answering):
    asked = task.examples(split, 12, seed=3)
    predictions = task.predict(answering(asked, [example.target.strip() for example in asked]), tokenizer, asked)
    assert [prediction.example for prediction in predictions] == asked
    assert set(task.scores(predictions).values()) == {1.0}


@every_task
def test_every_third_answer_swapped_for_another_questions_lowers_the_headline_score_by_as_much(task, tokenizer, answering):
    asked = task.examples("test", 12, seed=3)
    answers = [example.target.strip() for example in asked]
    given = [answers[index] if index % 3 else next(other for other in answers if other != answers[index]) for index in range(12)]
    predictions = task.predict(answering(asked, given), tokenizer, asked)
    scores = task.scores(predictions)
    assert next(iter(scores.values())) == pytest.approx(8 / 12)
    assert all(0 <= score < 1 for score in scores.values())


@every_task
def test_an_untrained_model_scores_nothing_and_each_of_its_answers_depends_on_its_prompt_alone(task, tokenizer, random_gpt):
    asked = task.examples("test", 6, seed=0)
    predictions = task.predict(random_gpt, tokenizer, asked)
    assert task.predict(random_gpt, tokenizer, asked[::-1]) == predictions[::-1]
    assert next(iter(task.scores(predictions).values())) == 0


@every_task
@pytest.mark.parametrize(("split", "count"), [("dev", 1), ("test", -1)])
def test_what_names_no_examples_is_refused(task, split, count):
    message = f"split must be one of train, validation, test, unseen and count at least 0, got '{split}' and {count}"
    with pytest.raises(ValueError, match=message):
        task.examples(split, count, seed=0)


@every_task
def test_no_prediction_has_no_score(task):
    with pytest.raises(ValueError, match="at least one prediction"):
        task.scores([])


@every_task
@every_split
def test_an_example_fits_the_context_of_the_backbone(task, split):
    tokenizer = BytePairTokenizer.load(ASSETS / "weights" / "tokenizer.json")
    lengths = sorted(len(task.encode(example, tokenizer)[0]) for example in task.examples(split, 500, seed=6))
    assert lengths[-1] <= 256
    assert lengths[250] <= 90  # short ones are learnt sooner


@every_task
def test_unseen_examples_use_the_words_of_unseen_tables_and_the_others_none(task):
    for split in task.SPLITS:
        ours, theirs = (tables.UNSEEN, tables.SEEN) if split == "unseen" else (tables.SEEN, tables.UNSEEN)
        for example in task.examples(split, 150, seed=7):
            words = set("".join(letter if letter.isalnum() else " " for letter in example.prompt).split())
            names, others = ({name for table in found.values() for name in words_of(table)} for found in (ours, theirs))
            assert words & names
            # A label is made of ordinary words, one of which also names a kind of thing: "silver bridge".
            assert not words & (others - {word for label in tables.LABELS for word in label.split()})


def words_of(table):
    return {
        table.name,
        table.singular,
        *(column.name for column in table.described),
        *(value for text in table.texts for value in text.values),
    }


def test_a_key_has_one_split_and_a_tenth_is_held_out_twice():
    found = [splits.split_of_key(f"{word} : {number}") for word in ("river", "city") for number in range(3000)]
    assert set(found) == {"train", "validation", "test"}
    for split in ("validation", "test"):
        assert found.count(split) / len(found) == pytest.approx(0.1, abs=0.015)  # about 4 standard errors


def test_the_modules_of_the_world_know_no_task():
    for module in (tables, sentences, splits):
        assert "lorabook.tasks.text_to_sql" not in Path(module.__file__).read_text()
