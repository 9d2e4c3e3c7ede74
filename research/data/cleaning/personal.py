"""Personal data: e-mail addresses, phone, card and identity numbers, and names of a list, masked.

    "call +44 20 7946 0958"  ->  "call [PHONE]"

Numbers with a check digit are masked only if it holds (identity.py). A phone number is told by its
form: +country, the North American one, a leading 0 and groups, or a word such as "tel" before bare
digits. Names are found by the list only; nothing here guesses names or addresses.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from research.arguments import InputError
from research.data.cleaning import Cleaned, Step
from research.data.identity import KINDS

EMAIL = re.compile(
    r"(?<![\w.+%-])[\w+%-]+(?:\.[\w+%-]+)*@(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,24}(?![\w-])"
)
_SEPARATED = r"[ ./-]?(?:\(0\) ?\d{1,5}|\(\d{1,5}\)|\d{1,5})(?:[ ./-]{1,2}\d{2,8}){1,5}"
PHONE = re.compile(
    rf"(?<![\w.+-])(?:"
    rf"(?:\+|(?<!\d )00)[1-9]\d{{0,2}}(?:{_SEPARATED}|[ .-]?\d{{7,12}})"  # international
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}"  # North America
    # National, with the 0 of its trunk prefix, but not of the form 012-34-5678.
    r"|(?!\d{3}-\d\d-\d{4}(?!\d))(?:\(0\d{1,4}\)|(?<!\d )0\d{1,4})(?:[ ./-]{1,2}\d{2,8}){1,4}"
    r")(?![-.]?\w)"
)
CUED = re.compile(
    r"(?i:(?<!\w)(?:tel|phone|telephone|mobile|cell|fax|call|whatsapp|sms)\b[.:]?"
    r"(?: (?:no|number|me at|us at|at|is)\b[.:]?)? {0,2})(\d{7,15})(?![-.]?\w)"
)
_DATE = re.compile(
    r"\(?(?:0?[1-9]|[12]\d|3[01])[ ./-]\d\d?[ ./-](?:19|20)\d\d|0\d[ ./-]\d\d[ ./-]\d\d"
)
_WORD = re.compile(r"\w+")
# What has none of these near one another has no address and no number: most lines, told quickly.
_SUSPECT = re.compile(r"[@\d](?:(?<=@)|(?:[^\d\n]{0,9}\d){5})")
ALL = ("email", "iban", "nir", "resident_id", "card", "ssn", "nino", "dni", "phone")


def make(kinds: tuple = ALL, names: str | None = None) -> Step:
    """Returns the step; it removes no document. `names` is a file with one name on each line, of
    one or more words, found as whole words in this case. Raises InputError for an unknown kind and
    for a file that cannot be read or is empty."""
    if unknown := [kind for kind in kinds if kind not in ALL]:
        raise InputError(f"personal.kinds={unknown[0]!r} is not known; known: {', '.join(ALL)}")
    listed, fingerprint = _names(names) if names else ({}, "")
    numbers = [kind for kind in KINDS if kind.name in kinds]

    def masked(line: str, found: dict[str, int]) -> str:
        def mask(name: str, pattern: re.Pattern, holds: Callable[[str], bool]) -> None:
            nonlocal line

            def replace(match: re.Match) -> str:
                if not holds(match.group()):
                    return match.group()
                found[name] = found.get(name, 0) + 1
                return f"[{name.upper()}]"

            line = pattern.sub(replace, line)

        if "email" in kinds and "@" in line:
            mask("email", EMAIL, bool)
        for kind in numbers:
            mask(kind.name, kind.pattern, kind.holds)
        if "phone" in kinds:
            mask("phone", PHONE, _is_phone)
            line, count = CUED.subn(_mask_last, line)
            if count:
                found["phone"] = found.get("phone", 0) + count
        return line

    def clean(text: str) -> Cleaned:
        found: dict[str, int] = {}
        parts, begin = [], 0
        while match := _SUSPECT.search(text, begin):
            start = max(text.rfind("\n", begin, match.start()) + 1, begin)
            end = text.find("\n", match.end())
            end = len(text) if end < 0 else end
            parts += text[begin:start], masked(text[start:end], found)
            begin = end
        text = "".join(parts) + text[begin:] if found else text
        here = listed.keys() & set(_WORD.findall(text)) if listed else ()
        if here:
            options = sorted((name for first in here for name in listed[first]), reverse=True)
            pattern = re.compile(rf"(?<!\w)(?:{'|'.join(options)})(?!\w)")
            text, count = pattern.subn("[NAME]", text)
            found |= {"name": count} if count else {}
        return Cleaned(text, found)

    return Step(clean, fingerprint=fingerprint)


def _mask_last(match: re.Match) -> str:
    whole = match.group()
    return f"{whole[: match.start(1) - match.start()]}[PHONE]"


def _is_phone(text: str) -> bool:
    """Tells whether as many digits as a phone has are left, and not a date or a book's number."""
    digits = re.sub(r"\D", "", text)
    is_international = text.startswith(("+", "00"))
    if not 9 - is_international <= len(digits) <= 15 or _DATE.fullmatch(text):
        return False
    return is_international or len(set(digits)) > 1


def _names(file: str) -> tuple[dict[str, list[str]], str]:
    """Returns patterns of the listed names under the first word of each, and their digest."""
    try:
        data = Path(file).expanduser().read_bytes()
        lines = [line.split() for line in data.decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"personal.names={file!r} cannot be read ({reason})") from None
    listed: dict[str, list[str]] = {}
    for parts in filter(None, lines):
        if first := _WORD.search(parts[0]):
            listed.setdefault(first.group(), []).append(r"\s+".join(map(re.escape, parts)))
    if not listed:
        raise InputError(f"personal.names={file!r} has no name; write one on each line")
    return listed, hashlib.sha256(data).hexdigest()
