"""Do windows lose answers, and what is the best score that spans of tokens can have?

    python -m experiments.questions --path=XQUAD       # results/results.json, half a minute

XQUAD holds xquad.en.json and xquad.zh.json (github.com/google-deepmind/xquad).
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from research.data import questions, squad, tokenizer
from research.tasks.answers import Language, score

RESULTS = Path(__file__).parent / "results" / "results.json"
LANGUAGES: tuple[Language, ...] = ("en", "zh")
# Rows of 384, 64 of a question and a new window each 128, as the paper has them; and narrow ones.
SIZES = ((384, 128, 64), (128, 32, 48), (96, 47, 46))


def codecs(path: str) -> dict[str, tokenizer.Tokenizer]:
    """Returns the tokenizers, learned from the very passages: offsets are asked here, not words."""
    quiz = squad.read(path, "validation")
    texts = quiz.passages + [question.text for question in quiz.questions]
    sizes = dict(bytes=None, characters=None, bpe=8_192)
    return {kind: tokenizer.train(kind, texts, size) for kind, size in sizes.items()}


def count(path: str, codec: tokenizer.Tokenizer, language: Language, sizes: tuple) -> dict:
    """Counts answers by what becomes of them, and scores the windows' own places as answers."""
    context, stride, max_question = sizes
    with tempfile.TemporaryDirectory() as folder:
        codec.save(saved := f"{folder}/tokenizer.json")
        began = time.process_time()
        options = dict(tokenizer_path=saved, context=context, stride=stride)
        options |= dict(max_question=max_question, split="validation", seed=0, batch=64)
        made = questions.make(path, **options)
        rows = [row for batch in made.batches() for row in _unstacked(batch)]
        seconds = time.process_time() - began
    found, scores, same, kinds, without = Counter(), [], 0, Counter(), 0
    quiz = squad.read(path, "validation")
    spans = [spans for _, spans in codec.locate(quiz.passages)]
    ids = codec.encode([question.text for question in quiz.questions])
    for number, (question, places) in enumerate(zip(quiz.questions, made.gold.rows, strict=True)):
        text, at = question.answers[0]
        first, last = questions.place(spans[question.passage], at, at + len(text))
        room = context - 3 - min(len(ids[number]), max_question)
        short = last - first < room - stride + 1
        holding = [i for i in places if rows[i]["starts"] > 0]
        kinds["within the overlap" if short else "longer"] += 1
        found["within the overlap" if short else "longer"] += bool(holding)
        without += len(places) - len(holding)
        if holding:
            got = made.gold.text(holding[0], rows[holding[0]]["starts"], rows[holding[0]]["ends"])
            same += got[0] == text.strip()
            scores.append(score(got[0], [text], language))
        else:
            scores.append((0.0, 0.0))
    exact, f1 = np.mean(scores, axis=0)
    return dict(
        sizes=dict(context=context, stride=stride, max_question=max_question),
        answers=dict(kinds),
        in_a_window=dict(found),
        outside=made.info["outside"],
        skipped=made.info["skipped_answers"],
        questions_cut=made.info["cut"],
        windows=made.info["windows"],
        windows_without_answer=without,
        same_characters=same,
        best_exact_match=round(float(exact), 4),
        best_f1=round(float(f1), 4),
        seconds_of_cpu=round(seconds, 1),
    )


def _unstacked(batch: dict) -> list[dict]:
    pairs = zip(batch["starts"].tolist(), batch["ends"].tolist(), strict=True)
    return [dict(starts=start, ends=end) for start, end in pairs]


def lengths(path: str, codec: tokenizer.Tokenizer) -> dict:
    """How many tokens the answers have."""
    quiz = squad.read(path, "validation")
    spans = [spans for _, spans in codec.locate(quiz.passages)]
    sizes = []
    for question in quiz.questions:
        text, at = question.answers[0]
        first, last = questions.place(spans[question.passage], at, at + len(text))
        sizes.append(last - first + 1)
    return {f"{share} %": int(np.percentile(sizes, share)) for share in (50, 90, 99, 100)}


def metrics(path: str, language: Language) -> dict:
    """Scores answers whose numbers are known, and one simple answer: the passage's first 3 words
    (characters, where there are no spaces)."""
    quiz = squad.read(path, "validation")
    gold = [[text for text, _ in question.answers] for question in quiz.questions]
    passages = [quiz.passages[question.passage] for question in quiz.questions]
    first = [" ".join(p.split()[:3]) if language == "en" else p[:3] for p in passages]
    variants = {
        "the answers themselves": [one[0] for one in gold],
        "in capitals and quotation marks": [f'"{one[0].upper()}".' for one in gold],
        "no answer": ["" for _ in gold],
        "the whole passage": passages,
        "its first three words": first,
    }
    result = {}
    for name, answers in variants.items():
        both = [score(a, g, language) for a, g in zip(answers, gold, strict=True)]
        exact, f1 = np.mean(both, axis=0)
        result[name] = dict(exact_match=round(float(exact), 4), f1=round(float(f1), 4))
    return result


def main() -> None:
    """Writes results.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", required=True, help="a folder with xquad.en.json, xquad.zh.json")
    folder = parser.parse_args().path
    results: dict = {}
    for language in LANGUAGES:
        path = f"{folder}/xquad.{language}.json"
        part = results[language] = {"metrics": metrics(path, language), "windows": {}}
        for kind, codec in codecs(path).items():
            part["windows"][kind] = [count(path, codec, language, sizes) for sizes in SIZES]
            part.setdefault("tokens_of_answers", {})[kind] = lengths(path, codec)
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
