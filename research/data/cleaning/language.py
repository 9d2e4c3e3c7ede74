"""The language of a document, by its script and, for Latin letters, by its most frequent words.

    steps = ("unicode", "language", ...), language = dict(keep=("en", "de"))

It knows seven languages in Latin letters; another one is taken for the nearest of these or for
"unknown". Scripts are named as such ("cyrillic": Russian or Bulgarian). It sees one language for a
document, and texts below about 20 words, source code and lists are often "unknown".
"""

import re
from collections import Counter

from research.arguments import Fraction, InputError, nearest
from research.data.cleaning import Cleaned, Step, remove

# Function words. A word of two languages counts for both.
WORDS = {
    "en": "the of and to in is that it for was on are with as be this have from at by not "
    "but or you which they he she his her we an there their has had were been can "
    "will would",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als "
    "auch es an werden aus er hat dass sie nach wird bei einer um am sind noch wie "
    "einem über so zum war",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne "
    "se ce il sont avec son elle aux mais ou comme cette nous ont être leur sa ses "
    "été ils",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o "
    "pero sus le ha me si sin sobre este ya entre cuando todo esta ser son también "
    "fue había",
    "it": "di e il la che in a per un del non è le con si da una i dei al come nel più lo "
    "gli alla della ma ha sono anche o se questo su delle dal degli nella essere ci "
    "suo era",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas "
    "foi ao ele das tem à seu sua ou ser quando muito há nos já está eu também só "
    "pelo pela",
    "nl": "de van een het en in is dat op te zijn met voor niet aan er die om ook als dan "
    "maar bij uit nog wordt door naar heeft ze hij worden over deze werd of kan was "
    "tot hun wij",
}  # fmt: skip
SCRIPTS = {
    "greek": "\u0370-\u03ff",
    "cyrillic": "\u0400-\u052f",
    "hebrew": "\u0590-\u05ff",
    "arabic": "\u0600-\u06ff\u0750-\u077f",
    "devanagari": "\u0900-\u097f",
    "thai": "\u0e00-\u0e7f",
    "kana": "\u3040-\u30ff",
    "hangul": "\uac00-\ud7af",
    "han": "\u4e00-\u9fff\u3400-\u4dbf",
}
_OF = {}
for _language, _words in WORDS.items():
    for _word in _words.split():
        _OF.setdefault(_word, []).append(_language)
_SCRIPT = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}
_OTHER = re.compile(f"[{''.join(SCRIPTS.values())}]")
_WORD = re.compile(r"[^\W\d_]+")
SAMPLE = 20_000  # characters of a document that are looked at


def make(keep: tuple = ("en",), min_share: Fraction = 0.15, keep_unknown: bool = False) -> Step:
    """Returns the step that removes documents in other languages than `keep`.

    A language is told from `min_share` of the words, which must be frequent ones of it (prose has
    0.3 to 0.5), else it is "unknown". Raises InputError for a name that is not known here."""
    for name in keep:
        if name not in WORDS and name not in SCRIPTS:
            given = f"language.keep={name!r} is not known here"
            raise InputError(f"{given}{nearest(str(name), [*WORDS, *SCRIPTS])}")

    def clean(text: str) -> Cleaned:
        found = language(text, min_share)
        stays = found in keep or (keep_unknown and found == "unknown")
        return Cleaned(text) if stays else remove(found)

    return Step(clean)


def language(text: str, min_share: float = 0.15) -> str:
    """Returns a key of WORDS or SCRIPTS, or "unknown"."""
    text = text[:SAMPLE]
    words = _WORD.findall(text.lower())
    if _OTHER.search(text):
        counts = {name: len(script.findall(text)) for name, script in _SCRIPT.items()}
        script = max(counts, key=counts.get)
        # Japanese is written in both, so that any share of kana tells it from Chinese.
        if script == "han" and counts["kana"] > 0.1 * counts["han"]:
            script = "kana"
        if counts[script] > 0.5 * sum(map(len, words)) or script == "kana" and counts["kana"] > 20:
            return script
    scores, counts = Counter(), Counter(words)
    for word in counts.keys() & _OF.keys():
        for name in _OF[word]:
            scores[name] += counts[word]
    best = max(WORDS, key=lambda name: scores[name])
    return best if scores[best] >= max(min_share * len(words), 1) else "unknown"
