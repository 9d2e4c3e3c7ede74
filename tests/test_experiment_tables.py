"""What experiments make of their corpora: no test sentence to learn from, and none lost."""

import numpy as np
import pytest

from experiments.babi import tables as babi
from experiments.sentences import settings
from experiments.sentences import tables as sentences
from experiments.transfer.texts import few, letters, unlabelled
from experiments.whole_runs import Runs
from research.arguments import InputError
from research.data import tokenizer

STORY = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Mary took the milk there.
5 Where is the milk? \tbathroom\t4 1
1 Dan ran.
2 Where is Dan? \tpark\t1
"""


def corpora(root, count=40):
    """Sentences of words that no other sentence has, in the forms of the corpora."""
    (root / "sst2").mkdir()
    (root / "text_classification").mkdir()
    text = lambda name, i: " ".join(f"{name}{i}w{j}" for j in range(6))  # noqa: E731
    for split in ("train", "dev", "test"):
        lines = [f"{text(split, i)}\t{i % 2}\n" for i in range(count)]
        (root / "sst2" / f"{split}.tsv").write_text("".join(lines))
    files = {"rt-polarity": "mr", "subj": "subj", "TREC.train": "trec", "TREC.test": "asked"}
    for file, name in files.items():
        lines = [f"{i % 2} {text(name, i)} caf\xe9 . \n" for i in range(count)]
        path = root / "text_classification" / f"{file}.all"
        path.write_bytes("".join(lines).encode("latin-1"))
    return root


@pytest.mark.parametrize("name", sentences.CORPORA)
def test_no_sentence_is_in_two_splits_and_none_is_lost(name, tmp_path):
    root = corpora(tmp_path)
    seen = []
    for seed in range(10):
        sentences.make(name, root, seed, tmp_path / f"{seed}")
        splits = ("train", "validation", "test")
        parts = [sentences.rows(tmp_path / f"{seed}" / f"{split}.tsv") for split in splits]
        whole = [row for part in parts for row in part]
        assert len(set(whole)) == len(whole) == {"sst2": 120, "mr": 40, "trec": 80}[name]
        assert {label for _, label in whole} == {"0", "1"}
        assert name == "sst2" or all(sentence.endswith("café .") for sentence, _ in whole)
        seen += parts[2]
    if name == "mr":  # the ten tests are all of it, each sentence once
        assert len(set(seen)) == len(seen) == 40


def test_words_are_the_tokens_and_rare_ones_are_one_token(tmp_path):
    texts = ["a film , a film", "a rare film"]
    path = sentences.words(texts, 2, str(tmp_path))
    codec = tokenizer.load(path)
    a, film, other = (codec.encode([text])[0].tolist() for text in ("a", "film", "unseen"))
    assert [len(ids) for ids in (a, film, other)] == [1, 1, 1]
    assert codec.encode(["a rare film"])[0].tolist() == [*a, *other, *film]
    assert codec.end not in (*a, *film, *other)


def test_what_runs_is_the_best_trial_and_all_of_them_were_made():
    tried = [
        dict(data="trec", model="cnn", given=given, validation=value)
        for given, value in zip(settings.TRIALS["trec/cnn"], range(99), strict=False)
    ]
    tried[2]["validation"] = 100
    assert settings.best("trec/cnn", tried) == settings.TRIALS["trec/cnn"][2]
    with pytest.raises(InputError, match="not tuned yet"):
        settings.best("trec/cnn", tried[1:])
    with pytest.raises(InputError, match="sst2/bert is not tuned"):
        settings.best("mr/bert", tried)


def test_a_story_is_what_was_told_before_its_question(tmp_path):
    (tmp_path / "qa1_single_train.txt").write_text(STORY)
    (tmp_path / "qa11_other_train.txt").write_text(STORY)
    first, second = babi.read(str(tmp_path), 1, "train")
    told = ["Mary moved to the bathroom.", "John went to the hallway."]
    assert first[0] == (told, "Where is Mary?", "bathroom")
    assert first[1] == (
        [*told, "Mary took the milk there."], "Where is the milk?", "bathroom",
    )  # fmt: skip
    assert second == [(["Dan ran."], "Where is Dan?", "park")]
    with pytest.raises(InputError, match="0 files qa2_"):
        babi.read(str(tmp_path), 2, "train")


def test_a_long_story_loses_whole_sentences_from_its_beginning():
    told, question = ["Mary moved to the bathroom.", "John went."], "Where is Mary?"
    assert babi.prompt(told, question, 13) == (" ".join([*told, question]), False)
    assert babi.prompt(told, question, 12) == ("John went. Where is Mary?", True)
    assert babi.prompt(told, question, 6) == ("Where is Mary?", True)


def test_nothing_that_is_judged_is_pretrained_on(tmp_path):
    root = corpora(tmp_path)
    judged = (root / "sst2" / "test.tsv").read_text().splitlines()[3].split("\t")[0]
    with (root / "text_classification" / "subj.all").open("a") as file:
        file.write(f"0 before {judged} after\n")  # the words
        file.write(f"1 {judged.replace('w', '-w').upper()}\n")  # the letters, in other words
        file.write("1 something else\n")
    kept, counts = unlabelled(root, tmp_path / "texts")
    texts = (tmp_path / "texts" / "validation.jsonl").read_text() + "\n".join(kept)
    assert letters(judged) not in letters(texts)
    assert counts["sentences"] == 83 and counts["kept"] == 81
    assert counts["by_words"] == 82 and "something else" in texts


def test_few_labels_are_other_ones_for_another_seed(tmp_path):
    root = corpora(tmp_path)
    for seed in (0, 1):
        few(root, seed, 10, tmp_path / f"{seed}")
    drawn = [sentences.rows(tmp_path / f"{seed}" / "train.tsv") for seed in (0, 1)]
    whole = sentences.rows(root / "sst2" / "train.tsv")
    assert [len(set(rows) & set(whole)) for rows in drawn] == [10, 10] and drawn[0] != drawn[1]


def test_a_run_is_found_by_its_names_and_nothing_else(tmp_path):
    runs = Runs(tmp_path / "results" / "runs.jsonl", ("data", "seed"))
    assert runs.find(data="a", seed=0) is None
    runs.add(dict(data="a", seed=0, test=float(np.float32(0.5))))
    assert runs.find(data="a", seed=0)["test"] == 0.5
    assert runs.find(data="a", seed=1) is None and runs.find(data="b", seed=0) is None
