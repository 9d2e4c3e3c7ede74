"""Questions about passages: offsets, windows that lose no answer, what is skipped or refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.arguments import InputError
from research.data import questions, squad
from research.data import tokenizer as tokenizer_lib

TEXT = "The Panthers gave up (308) points. Naïve café 黑豹队 丢了 308 分 😀 e\u0301."
KINDS = ("bytes", "characters", "bpe")


def article(passage, *asked):
    """One passage; each question is (text, [(answer, start), ...])."""
    qas = [
        dict(id=f"q{i}", question=text, answers=[dict(text=a, answer_start=s) for a, s in answers])
        for i, (text, answers) in enumerate(asked)
    ]
    return dict(paragraphs=[dict(context=passage, qas=qas)])


def write(folder, name, *articles):
    (folder / name).write_text(json.dumps(dict(data=articles)), encoding="utf-8")


def make(path, split="validation", **options):
    options = dict(tokenizer="bytes", context=32, stride=8, max_question=8) | options
    return questions.make(str(path), **options, split=split, seed=0, batch=4)


def tokenizer(kind, texts=(TEXT,)):
    return tokenizer_lib.train(kind, texts, 300 if kind == "bpe" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_knows_its_characters(kind):
    codec = tokenizer(kind)
    (ids, spans), (none, _) = codec.locate([TEXT, ""])
    assert ids.tolist() == codec.encode([TEXT])[0].tolist() and not len(none)
    assert spans[0, 0] == 0 and spans[-1, 1] == len(TEXT)
    assert (np.diff(spans, axis=0) >= 0).all() and (spans[:, 0] < spans[:, 1]).all()
    whole = 0  # a token of whole characters spells just these
    for token, (start, stop) in zip(ids, spans, strict=True):
        if "\ufffd" not in codec.decode([token]):
            assert codec.decode([token]) == TEXT[start:stop]
            whole += 1
    assert whole > 20


def test_a_package_s_own_tokens_are_not_part_of_a_text(tmp_path):
    package, name = tokenizer_lib.to_package(tokenizer("bpe"))
    values = json.loads(package)
    number = len(values["model"]["vocab"])
    values["post_processor"] = dict(
        type="TemplateProcessing",
        single=[
            dict(SpecialToken=dict(id=name, type_id=0)),
            dict(Sequence=dict(id="A", type_id=0)),
        ],
        pair=[dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=0))],
        special_tokens={name: dict(id=name, ids=[number], tokens=[name])},
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(eos_token=name)))
    codec = tokenizer_lib.load(str(tmp_path / "tokenizer.json"))
    ids, spans = codec.locate([TEXT])[0]
    assert codec.encode([TEXT])[0].tolist() == [number, *ids]
    assert spans[0, 0] == 0 and spans[-1, 1] == len(TEXT)


def test_a_row_is_first_question_end_window_end(tmp_path):
    write(tmp_path, "dev-v1.1.json", article("abcdefgh", ("who?", [("cd", 2)])))
    made = make(tmp_path, context=15, stride=4, max_question=4)
    batch = next(made.batches())
    assert batch["tokens"][0].tolist() == [258, *b"who?", 256, *b"abcdefgh", 256]
    assert batch["types"][0].tolist() == [0] * 6 + [1] * 9 and batch["segments"][0].all()
    assert (batch["starts"][0], batch["ends"][0]) == (8, 9)
    assert batch["weight"].tolist() == [1, 0, 0, 0] and made.info["windows"] == 1
    assert made.gold.text(0, 8, 9) == ("cd", 2)


def test_an_answer_outside_the_window_and_no_answer_are_the_first_token(tmp_path):
    asked = [("a?", [("YZ", 24)]), ("b?", [])]
    passage = "abcdefghijklmnopqrstuvwxYZ"
    write(tmp_path, "validation.json", article(passage, *asked))
    made = make(tmp_path, context=17, stride=6, max_question=4)
    batches = list(made.batches())
    starts = np.concatenate([batch["starts"] for batch in batches])
    assert made.gold.rows == [range(4), range(4, 8)]  # 12 tokens each, from 0, 6, 12 and 18 on
    assert starts[:8].tolist() == [0, 0, 0, 4 + 24 - 18, 0, 0, 0, 0]
    assert [batch["turn"].argmax(1).tolist() for batch in batches] == [[0] * 4, [1] * 4]
    assert made.info["without_answer"] == 1 and made.info["outside"] == 0


def test_answers_that_are_not_where_they_should_be_are_skipped_and_named(tmp_path):
    asked = [("a?", [("b", 0)]), ("b?", [("b", 1)]), ("c?", [("x", 9), ("c", 2)])]
    for name in ("train.json", "validation.json"):
        write(tmp_path, name, article("abc", *asked))
    train, valid = make(tmp_path, "train"), make(tmp_path)
    for made, rows in ((train, 2), (valid, 3)):
        assert made.info["skipped_answers"] == 2 and made.info["skipped"] == ["q0", "q2"]
        assert made.info["windows"] == rows and made.info["questions"] == 3
    assert next(valid.batches())["weight"].tolist() == [0, 1, 1, 0]
    assert valid.gold.answers[0] == ["b"] and train.gold is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not in the JSON form of SQuAD"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "KeyError: 'context'"),
        ('{"data": 3}', "TypeError"),
        ('{"data": []}', "has no questions for split validation"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, content, message):
    (tmp_path / "validation.json").write_text(content)
    with pytest.raises(InputError, match=message):
        make(tmp_path)


def test_what_is_not_there_or_leaves_gaps_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no validation\*.json or dev\*.json"):
        make(tmp_path)
    write(tmp_path, "dev-v1.1.json", article("abc", ("a?", [("b", 1)])))
    with pytest.raises(InputError, match="hold 21 tokens beside questions of max_question=8"):
        make(tmp_path, stride=22)
    assert make(tmp_path / "dev-v1.1.json").info["questions"] == 1
    with pytest.raises(InputError, match="is a file: to evaluate"):
        make(tmp_path / "dev-v1.1.json", "train")
    write(tmp_path, "dev-v2.0.json", article("abc", ("a?", [])))
    with pytest.raises(InputError, match="has dev-v1.1.json and dev-v2.0.json for split"):
        make(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        make(tmp_path / "nowhere")


def test_the_standard_library_asks_and_some_questions_have_no_answer():
    quiz = squad.read("stdlib", "validation")
    absent = sum(not question.answers for question in quiz.questions)
    assert len(quiz.questions) > 50 and 0.1 < absent / len(quiz.questions) < 0.3
    for question in quiz.questions:
        for text, at in question.answers:
            assert quiz.passages[question.passage][at:].startswith(text)


PIECES = st.sampled_from(
    ["the ", "Panthers", "(308)", "é", "黑豹队", "分", " ", "\n", "😀", ", ", "a"]
)


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(PIECES, min_size=1, max_size=60),
    where=st.tuples(st.integers(0, 400), st.integers(1, 40)),
    asked=st.lists(PIECES, max_size=8),
    kind=st.sampled_from(KINDS),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12)),
)
def test_no_answer_that_is_no_longer_than_the_overlap_is_lost(pieces, where, asked, kind, sizes):
    passage, question = "".join(pieces), "".join(asked)
    begin = where[0] % len(passage)
    answer = passage[begin : begin + where[1]]
    max_question, stride, overlap = sizes
    context = 3 + max_question + stride + overlap
    codec = tokenizer(kind, (passage + question,))
    texts, _ = questions.tokenise([passage], [question], [0], context, stride, max_question, codec)
    spans = texts.tokens[0][1]
    first, last = questions.place(spans, begin, begin + len(answer))
    assert spans[first, 0] <= begin and spans[last, 1] >= begin + len(answer)
    held, seen = [], set()
    for start in texts.starts(0):
        row, room = texts.row(0, start), texts.room(0)
        shown = row["tokens"][row["types"] > 0][:-1]
        seen |= set(range(start, start + len(shown)))
        if start <= first and last < start + room:
            shift = len(texts.questions[0]) + 2 - start
            assert row["tokens"][first + shift : last + shift + 1].tolist() == (
                texts.tokens[0][0][first : last + 1].tolist()
            )
            text, at = texts.text(0, start, first + shift, last + shift)
            assert answer.strip() in text and passage[at:].startswith(text)
            held.append(start)
    assert seen == set(range(len(spans)))  # no token of the passage is in no window
    assert held or last - first + 1 > texts.room(0) - stride + 1
