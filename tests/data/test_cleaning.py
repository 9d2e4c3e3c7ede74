"""Cleaning: what each step finds, masks and leaves alone."""

import random
import re
import time

import numpy as np
import pytest

from research.arguments import InputError
from research.data import identity, shingles
from research.data.cleaning import (
    contamination,
    exact,
    language,
    near,
    personal,
    quality,
    repetition,
    unicode,
)
from tests.documents import STOPS, encode, prose, write


def test_utf8_read_in_a_wrong_encoding_comes_back():
    step = unicode.make().clean
    for text in ("“Café” – naïve, 5 €", "Größe", "Привет, мир", "日本語テキスト", "ok 😀", "voilà"):
        for again in range(1, 3):
            wrong = text
            for _ in range(again):
                wrong = "".join(
                    chr(b) if b in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else bytes([b]).decode("cp1252")
                    for b in wrong.encode()
                )
            assert step(wrong).text == text
            assert step(wrong).found["mojibake"] > 0
        assert step(text.encode().decode("latin-1")).text == text


@pytest.mark.parametrize(
    "text",
    [
        "„Spaß“ und «FORÊ» «AMANHÃ» „TSCHÄ“ ”PÅ” voilà» … «là»… R«Â»",
        "SÃO PAULO, ÎLE, Ñandú, ÅNGSTRÖM, 5 £ °C ½",
        "Ελληνικά, Русский, 中文, हिन्दी, עברית, العربية",
    ],
)
def test_right_text_is_not_repaired(text):
    assert unicode.make().clean(text) == (text, {})


def test_line_ends_controls_and_composition_are_made_one():
    step = unicode.make().clean
    assert step("a\r\nb\rc\u2028d") == ("a\nb\nc\nd", {"line_ends": 3})
    assert step("\ufeffa\0b\u200bc\x07\td") == ("abc\td", {"controls": 4})
    assert step("e\u0301") == ("é", {"normalised": 1})
    assert step("ﬁ").text == "ﬁ" and unicode.make(form="NFKC").clean("ﬁ").text == "fi"


LANGUAGES = {
    "en": "The ship had left the harbour in the night, and nobody on the quay knew where it went",
    "de": "Das Schiff hatte den Hafen in der Nacht verlassen, und niemand wusste, wohin es fuhr",
    "fr": "Le navire avait quitté le port dans la nuit, et personne ne savait où il allait",
    "es": "El barco había dejado el puerto por la noche, y nadie en el muelle sabía a dónde iba",
    "it": "La nave aveva lasciato il porto di notte, e nessuno sul molo sapeva dove andava",
    "pt": "O navio tinha deixado o porto de noite, e ninguém no cais sabia para onde ia",
    "nl": "Het schip had de haven in de nacht verlaten, en niemand op de kade wist waarheen",
    "cyrillic": "Корабль ушёл из гавани ночью, и никто не знал, куда он идёт",
    "han": "船在夜里离开了港口，没有人知道它要去哪里",
    "kana": "船は夜のうちに港を出て、どこへ行くのか誰も知らなかった",
    "hangul": "배는 밤에 항구를 떠났고 어디로 가는지 아무도 몰랐다",
    "unknown": "zxq vvk prrt 33 wlm qqp bzz 7 kkd",
}  # fmt: skip


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_document_in_another_language_goes(name):
    assert language.language(LANGUAGES[name]) == name
    found = language.make(keep=("en",)).clean(LANGUAGES[name])
    assert found == ((LANGUAGES[name], {}) if name == "en" else (None, {name: 1}))
    if name != "unknown":
        assert language.make(keep=(name,)).clean(LANGUAGES[name]).text is not None
    assert language.make(keep_unknown=True).clean(LANGUAGES["unknown"]).text is not None


GOOD = prose(5)
JUNK = {
    "too_few_words": "the of and",
    "too_many_words": " ".join(["the", "of", "word"] * 40_000),
    "mean_word_length": GOOD + " antidisestablishmentarianismic" * 120,
    "symbols": GOOD + " # of" * 30,
    "bullets": "\n".join(f"- {line}" for line in [GOOD] * 20),
    "ellipsis_lines": "\n".join([f"{GOOD} ..."] * 4 + [GOOD] * 6),
    "few_letters": GOOD + " 1234 5678" * 30,
    "few_stop_words": " ".join(word for word in GOOD.split() if word not in STOPS),
}


@pytest.mark.parametrize("reason", JUNK)
def test_gophers_rules_remove_what_they_name(reason):
    step = quality.make().clean
    assert step(GOOD) == (GOOD, {})
    assert step(JUNK[reason]) == (None, {reason: 1})


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("repeated_lines", "\n".join([prose(1), *[prose(2, 5)] * 3, prose(3)])),
        ("characters_in_repeated_lines", "\n".join([prose(1), prose(1), *map(prose, range(2, 5))])),
        ("top_2gram", f"{prose(1)}{' abcdefgh abcdefgh.' * 20}"),
        ("repeated_5grams", " ".join([prose(1), *[prose(2, 12)] * 4])),
    ],
)
def test_repetition_is_removed(reason, text):
    step = repetition.make().clean
    assert step(prose(1)).text is not None
    assert step(text) == (None, {reason: 1})


def test_shares_of_repeated_words_are_those_of_plain_python():
    draw = random.Random(0)
    for _ in range(60):
        words = draw.choices(["a", "bb", "ccc", "dddd"], k=draw.randint(5, 40))
        sizes = list(map(len, words))
        for n in range(2, 11):
            grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
            most = max(map(grams.count, grams), default=0)
            top = max((len("".join(g)) for g in grams if grams.count(g) == most), default=0) * most
            top = top if most > 1 else 0
            again = [i for i, gram in enumerate(grams) if gram in grams[:i]]
            covered = sum(sizes[i] for i in {i + k for i in again for k in range(n)})
            share = min(1.0, (top if n < 5 else covered) / sum(sizes))
            limits = [[1.0] * 3, [1.0] * 6]
            for limit, breaks in ((share - 1e-9, True), (share + 1e-9, False)):
                if not 0 <= limit < 1:
                    continue
                limits[n >= 5][n - 2 if n < 5 else n - 5] = limit
                found = repetition._repeated_words(" ".join(words), *map(tuple, limits))
                assert (found is not None) == breaks, (words, n)


def test_word_ngrams_are_equal_where_their_words_are():
    draw = random.Random(1)
    texts = [
        " ".join(draw.choices(["Ä", "b", "ça", "aç", "d'e", "中文", "x1", "1x"], k=30))
        for _ in range(40)
    ]
    grams, numbers = [], []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        grams += [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
        numbers += shingles.ngrams(shingles.words(text).hashes, 3).tolist()
    assert len(grams) == len(numbers)
    assert len(set(grams)) == len(set(numbers)) == len(set(zip(grams, numbers, strict=True)))
    found = shingles.words("Ça va, “naïve”?")
    assert [(s, e) for s, e in zip(found.starts, found.ends, strict=True)] == [
        (0, 2), (3, 5), (8, 13),
    ]  # fmt: skip


def test_of_equal_documents_the_first_one_stays():
    step = exact.make()
    texts = ["b c", "a", "b  c\n", "B c", "a", "b c"]
    assert step.decide(np.array(list(map(step.sign, texts))), None) == {2: 0, 4: 1, 5: 0}


def brute_jaccard(a, b, n=5):
    """The second source: sets of tuples of strings."""
    sets = []
    for text in (a, b):
        words = re.findall(r"\w+", text.lower())
        sets.append({tuple(words[i : i + n]) for i in range(len(words) - n + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def planted(count):
    """Returns documents, each followed by one in which some words are replaced."""
    texts = []
    for seed in range(count):
        words = prose(seed, 300).split()
        changed = list(words)
        for place in random.Random(seed).sample(range(300), 2 + seed % 10):
            changed[place] = f"new{place}"
        texts += [" ".join(words), " ".join(changed)]
    return texts


def test_near_duplicates_at_jaccard_0_8_are_found():
    texts = planted(200)
    step = near.make()
    found = step.decide(np.array(list(map(step.sign, texts))), texts.__getitem__)
    truth = {i + 1 for i in range(0, 400, 2) if brute_jaccard(texts[i], texts[i + 1]) >= 0.8}
    assert 50 < len(truth) < 150
    assert found.keys() <= truth  # nothing below 0.8 goes
    assert len(found) >= 0.95 * len(truth)
    assert all(other == index - 1 for index, other in found.items())


def test_what_is_unlike_all_that_stays_is_kept():
    words = prose(0, 400).split()
    # Each like the one before it, and the third unlike the first: it stays when the second goes.
    texts = [" ".join(words[start : start + 200]) for start in (0, 20, 40)]
    values = [brute_jaccard(texts[a], texts[b]) for a, b in ((0, 1), (1, 2), (0, 2))]
    assert min(values[:2]) >= 0.8 > values[2]
    step = near.make()
    assert step.decide(np.array(list(map(step.sign, texts))), texts.__getitem__) == {1: 0}
    assert step.decide(np.array(list(map(step.sign, ["", "!", "?"]))), ["", "!", "?"]) == {}


def test_bands_that_find_too_little_are_refused():
    with pytest.raises(InputError, match="find 0.168 of the pairs at 0.8; expected 0.95 at least"):
        near.make(bands=1, rows=8)


def test_overlap_with_an_evaluation_set_goes_or_is_cut(tmp_path):
    question = prose(50, 40)
    (tmp_path / "eval.jsonl").write_bytes(encode(question) + b"\n" + encode(prose(51, 9)))
    where = dict(path=str(tmp_path / "eval.jsonl"), reader="jsonl")
    words = question.split()
    inside = f"{prose(1)} {' '.join(words[5:18]).upper().replace(' ', ', ')}. {prose(2)}"
    nearly = f"{prose(1)} {' '.join(words[5:17])} {prose(2)}"
    drop = contamination.make(**where).clean
    assert drop(nearly) == (nearly, {})
    assert drop(inside) == (None, {"overlap": 1})
    assert drop(f"x {prose(51, 9)} y").text is None  # all of a short one
    cut = contamination.make(**where, action="cut", margin=50).clean(inside)
    before, after = cut.text.split("\n\n")
    assert cut.found == {"overlap_cut": 1}
    assert inside.startswith(before) and inside.endswith(after)
    begin = inside.index(" ".join(words[5:18]).upper().replace(" ", ", "))
    end = inside.index(". ", begin)
    assert 0 <= begin - 50 - len(before) <= 1
    assert 0 <= len(inside) - len(after) - (end + 50) <= 1
    with pytest.raises(InputError, match="contamination.path is missing"):
        contamination.make()
    with pytest.raises(InputError, match="none of 60 words"):
        contamination.make(**where, ngram=90, min_ngram=60)


PERSONAL = {
    "email": ["joe.doe+x@mail.example.co.uk", "a@b.org", "müller@exämple.de"],
    "phone": [
        "+44 20 7946 0958", "(415) 555-0132", "415-555-0132", "415.555.0132", "020 7946 0958",
        "+1-202-555-0143", "+4915112345678", "030/1234567", "0049 30 1234567", "01 23 45 67 89",
    ],
    "card": ["4111 1111 1111 1111", "5500005555555559", "378282246310005", "3782-822463-10005"],
    "iban": ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "NO9386011117947"],
    "ssn": ["123-45-6789"],
    "nino": ["AB 12 34 56 C", "AB123456C"],
    "dni": ["12345678Z", "X-1234567-L"],
    "nir": ["1 84 12 76 451 089 46", "255081416802538"],
    "resident_id": ["11010519491231002X"],
}  # fmt: skip
HARMLESS = [
    "version 1.2.3.4", "2024-01-15", "15/01/2024", "01-02-2003", "2024-01-15T10:20:30.123456",
    "ISBN 978-0-306-40615-7", "0-306-40615-2", "9780306406157", "192.168.10.1", "1,234,567.89",
    "3.14159265358979323", "2019-2020", "pages 100-200", "doi:10.1000/182-4321",
    "0xdeadbeef12345678",
    "4111 1111 1111 1112", "5500005555555558", "GB82 WEST 1234 5698 7654 33", "000-12-3456",
    "666-12-3456", "12345678A", "GB123456A", "110105194912310021", "user @name", "a@b",
    "0000 0000 0000 0000",
    "1700000000", "550e8400-e29b-41d4-a716-446655440000",
]  # fmt: skip


@pytest.mark.parametrize("kind", PERSONAL)
def test_personal_data_is_masked(kind):
    step = personal.make().clean
    for value in PERSONAL[kind]:
        for around in ("{}", "is {}.", "({}), and", "first line\nid: {}\nlast", "“{}”"):
            expected = around.format(f"[{kind.upper()}]")
            assert step(around.format(value)) == (expected, {kind: 1}), value
    others = tuple(name for name in personal.ALL if name != kind)
    masked = personal.make(kinds=(kind,)).clean(" ; ".join(PERSONAL[kind])).text
    assert masked == " ; ".join([f"[{kind.upper()}]"] * len(PERSONAL[kind]))
    assert kind not in personal.make(kinds=others).clean(PERSONAL[kind][0]).found


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_personal_is_left(text):
    assert personal.make().clean(f"see {text} here") == (f"see {text} here", {})


def test_bare_digits_are_a_phone_number_behind_a_word_that_says_so():
    step = personal.make().clean
    assert step("Tel: 4155550132, fax 4155550133") == ("Tel: [PHONE], fax [PHONE]", {"phone": 2})
    assert step("order 4155550132").found == {}


def test_listed_names_are_masked_as_whole_words(tmp_path):
    (tmp_path / "names.txt").write_text("Ann\nAnn Lee\nJosé  Ruiz\n\n")
    step = personal.make(names=str(tmp_path / "names.txt")).clean
    text = "Ann Lee, Ann and José\nRuiz; but Anne, ann, José and Lee."
    expected = "[NAME], [NAME] and [NAME]; but Anne, ann, José and Lee."
    assert step(text) == (expected, {"name": 3})
    with pytest.raises(InputError, match="cannot be read"):
        personal.make(names=str(tmp_path / "missing.txt"))
    (tmp_path / "names.txt").write_text("\n")
    with pytest.raises(InputError, match="has no name"):
        personal.make(names=str(tmp_path / "names.txt"))


def test_one_wrong_digit_of_a_card_or_iban_is_noticed():
    for check, number in (
        (identity.is_card, "4111111111111111"),
        (identity.is_iban, "DE89370400440532013000"),
    ):
        assert check(number)
        for place in range(2, len(number)):
            for digit in set("0123456789") - {number[place]}:
                assert not check(number[:place] + digit + number[place + 1 :])


HOSTILE = ["a@" + "b" * 200_000, "a." * 100_000 + "@", "1 " * 200_000, "+1" + " 12" * 100_000]
HOSTILE += [
    "DE12 " + "A1B2 " * 50_000,
    "4111-" * 60_000,
    "Ã©" * 200_000,
    "ð" * 200_000,
    "\n" * 200_000,
]


@pytest.mark.parametrize("step", [unicode, personal, language, quality, repetition])
def test_no_text_takes_for_ever(step):
    start = time.process_time()
    for text in HOSTILE:
        step.make().clean(text)
    assert time.process_time() - start < 10  # it is one second; what is quadratic takes minutes


def test_blank_lines_that_hold_a_space_are_no_repetition():
    text = "\n \n".join(prose(seed, 12) for seed in range(30))
    assert repetition.make().clean(text).text == text


@pytest.mark.parametrize("name", ["max_top", "max_repeated"])
@pytest.mark.parametrize("given", [("a", "b", "c"), (0.5,), (0.5,) * 9])
def test_shares_that_are_no_numbers_are_refused_at_once(name, given):
    with pytest.raises(InputError, match=f"repetition.{name}"):
        repetition.make(**{name: given})


@pytest.mark.parametrize(
    "text",
    [
        "BE68 5390 0754 7034 EUR",
        "BE68539007547034 BIC KREDBEBB",
        "GB29 NWBK 6016 1331 9268 19",
        "card 4111 1111 1111 1111 123",
        "30569309025904",
    ],
)
def test_numbers_beside_short_words_and_codes_are_masked(text):
    assert sum(personal.make().clean(text).found.values()) == 1


def test_an_uncertain_sequence_beside_a_certain_one_stays():
    found = unicode.make().clean("voilà\u00a0» et cafÃ©")
    assert found.text == "voilà\u00a0» et café" and found.found == {"mojibake": 1}


def test_a_test_set_beside_train_files_counts_for_overlap(tmp_path):
    folder = write(tmp_path / "sets", [prose(1)])
    (tmp_path / "sets" / "test.jsonl").write_bytes(encode(prose(2)))
    step = contamination.make(path=folder, reader="jsonl")
    assert step.clean(prose(2)).text != prose(2) and step.clean(prose(3)).text == prose(3)
