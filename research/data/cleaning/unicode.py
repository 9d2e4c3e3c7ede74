"""Repair of characters: UTF-8 that was read as Latin-1 or Windows-1252, NFC, controls, line ends.

Only what is certain is repaired. "Ã©" comes from "é" wherever it stands, but "Â»", "Ä“" or "Ð’" are
also what somebody wrote, next to a quotation mark: they are repaired in a document that has a
certain case too. A white space or byte that a program lost on the way cannot be brought back.
"""

import re
import unicodedata
from typing import Literal

from research.data.cleaning import Cleaned, Step

# The characters that bytes 0x80 to 0xBF become: by Latin-1, and by Windows-1252 below 0xA0.
_BYTES = {chr(byte): byte for byte in range(0x80, 0x100)}
for _byte in range(0x80, 0xA0):
    try:
        _BYTES[bytes([_byte]).decode("cp1252")] = _byte
    except UnicodeDecodeError:
        pass  # five bytes have no character there
_NEXT = "[" + "".join(re.escape(c) for c, byte in _BYTES.items() if byte < 0xC0) + "]"
_SEQUENCE = re.compile(
    f"(?:[\u00c2-\u00df]{_NEXT}|[\u00e0-\u00ef]{_NEXT}{{2}}|[\u00f0-\u00f4]{_NEXT}{{3}})+"
)
# Those of them that people write: beside an accented letter they prove nothing.
_WRITTEN = set("«»“”‘’‚„‹›…–—\u00a0¡¿·°ºª´¨")
# Characters, beside accented Latin letters, that are common enough for one of them to be certain:
# punctuation, currency, arrows and mathematics, drawings, ligatures, the byte order mark, emoji.
_COMMON = re.compile(
    "[\u00a0-\u017f\u0192\u02c6\u02dc\u2010-\u22ff\u2500-\u27bf\ufb00-\ufb06\ufeff\U0001f300-\U0001faff]"
)
_CONTROL = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u2060\ufeff\ud800-\udfff\ufffe\uffff]"
)
_LINE_END = re.compile("\r\n?|[\x85\u2028\u2029]")


def make(mojibake: bool = True, form: Literal["NFC", "NFKC", "none"] = "NFC") -> Step:
    """Returns the step; it removes no document. `mojibake` repairs what was read in the wrong
    encoding, up to twice over. "NFKC" also makes ligatures, full width and superscripts plain."""

    def clean(text: str) -> Cleaned:
        found: dict[str, int] = {}
        for _ in range(2 if mojibake and not text.isascii() else 0):
            text, count = _repair(text)
            if not count:
                break
            found["mojibake"] = found.get("mojibake", 0) + count
        for name, pattern, new in (("line_ends", _LINE_END, "\n"), ("controls", _CONTROL, "")):
            text, count = pattern.subn(new, text)
            if count:
                found[name] = count
        if form != "none" and not unicodedata.is_normalized(form, text):
            text, found["normalised"] = unicodedata.normalize(form, text), 1
        return Cleaned(text, found)

    return Step(clean)


def _repair(text: str) -> tuple[str, int]:
    """Returns the text and in how many places it was repaired: none unless one is certain."""
    if not any(_is_certain(match) for match in _SEQUENCE.finditer(text)):
        return text, 0
    count = 0

    def replace(match: re.Match) -> str:
        nonlocal count
        run = match.group()
        new = _decoded(run)
        # A letter before what is written behind letters (à, a narrow space, ») may be right as it
        # stands, unless it makes a letter, or no language has it there.
        written = run[0] != "Â" and all(char in _WRITTEN for char in run[1:])
        letters = new and all(unicodedata.category(char)[0] in "LMN" for char in new)
        if not new or (written and not letters and not _is_certain(match)):
            return run
        count += 1
        return new

    return _SEQUENCE.sub(replace, text), count


def _decoded(run: str) -> str | None:
    try:
        return bytes(_BYTES[char] for char in run).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _is_certain(match: re.Match) -> bool:
    run = match.group()
    new = _decoded(run)
    if new is None:
        return False
    if len(new) > 2 and all(char.isalpha() for char in new):
        return True  # a word of another script
    if not all(map(_COMMON.match, new)):
        return False
    # A capital within small letters, of which no language makes a word.
    start, end = match.span()
    beside = match.string[max(start - 1, 0) : start] + match.string[end : end + 1]
    inside = any(map(str.islower, beside))
    return len(run) > 2 * len(new) or run[1] not in _WRITTEN or (inside and run[0] in "ÂÃ")
