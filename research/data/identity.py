"""Numbers that identify a person or an account, each told by its form and its own check.

    [(kind, pattern, holds), ...]: `holds` is asked of what the pattern found

A check digit alone lets one number in 10 (cards) to 97 (IBAN) through, so a form is part of each.
"""

import datetime
import re
from collections.abc import Callable
from typing import NamedTuple

# Characters of an IBAN by country (the ISO 13616 registry; its longer tail is left out).
IBAN = dict(
    AD=24, AE=23, AL=28, AT=20, AZ=28, BA=20, BE=16, BG=22, BH=22, BR=29, CH=21, CR=22,
    CY=28, CZ=24, DE=22, DK=18, DO=28, EE=20, ES=24, FI=18, FO=18, FR=27, GB=22, GE=22,
    GI=23, GL=18, GR=27, HR=21, HU=28, IE=22, IL=23, IS=26, IT=27, JO=30, KW=30, KZ=20,
    LB=28, LI=21, LT=20, LU=20, LV=21, MC=27, MD=24, ME=22, MK=19, MR=27, MT=31, NL=18,
    NO=15, PK=24, PL=28, PS=29, PT=25, QA=29, RO=24, RS=22, SA=24, SE=24, SI=19, SK=24,
    SM=27, TN=24, TR=26, UA=29, VG=24, XK=20,
)  # fmt: skip


class Kind(NamedTuple):
    """One kind of number."""

    name: str
    pattern: re.Pattern
    holds: Callable[[str], bool]


def luhn(digits: str) -> bool:
    """Tells whether the last digit is right by Luhn's formula (ISO/IEC 7812)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def is_card(text: str) -> bool:
    """Tells a payment card number: issuer, length and Luhn's digit."""
    digits = re.sub(r"\D", "", text)
    lengths = {"34": (15,), "37": (15,), "36": (14,), "38": (14,)}
    lengths = lengths | {"30": (14, 16), "39": (14, 16)}
    lengths = lengths.get(digits[:2])
    lengths = lengths or {"4": (16, 19), "5": (16,), "2": (16,), "3": (16,), "6": (16, 19)}.get(
        digits[:1], ()
    )
    return len(digits) in lengths and len(set(digits)) > 1 and luhn(digits)


def is_iban(text: str) -> bool:
    """Tells an IBAN: the length of its country, and 1 modulo 97 (ISO 13616)."""
    plain = text.replace(" ", "").upper()
    moved = "".join(str(int(char, 36)) for char in plain[4:] + plain[:4])
    return IBAN.get(plain[:2]) == len(plain) and int(moved) % 97 == 1


def _is_dni(text: str) -> bool:
    plain = re.sub(r"[ -]", "", text).upper()
    number = plain[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == plain[-1]


def _is_nir(text: str) -> bool:
    plain = text.replace(" ", "").upper()
    number = plain[:-2].replace("2A", "19").replace("2B", "18")
    return 97 - int(number) % 97 == int(plain[-2:])


def _is_resident(text: str) -> bool:
    try:
        datetime.date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17].upper()


def _always(text: str) -> bool:
    return True


def _kind(name: str, pattern: str, holds: Callable[[str], bool] = _always) -> Kind:
    # Nothing beside it that would make it a part of more: a letter, a digit, a sign and a digit.
    return Kind(name, re.compile(rf"(?<![\w.+-])(?:{pattern})(?![-.]?\w)"), holds)


_MONTH = r"(?:0[1-9]|1[0-2]|[2-9]\d)"  # beyond 12 where it is not known
_FOURS = r"\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?"
# Each country by its length, so that a word behind the number is no part of it.
_IBANS = "|".join(rf"{c}\d\d(?: ?[A-Z0-9]){{{n - 4}}}" for c, n in IBAN.items())
_PREFIX = "(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]"
# In this order: the longer forms first. IBAN; payment card; US social security number (never 000,
# 666 or 9xx, nor zeros in a group); UK national insurance number; Spanish DNI and NIE; French NIR;
# Chinese resident identity number (GB 11643).
KINDS = (
    _kind("iban", _IBANS, is_iban),
    _kind("nir", rf"[12] ?\d\d ?{_MONTH} ?(?:\d\d|2[AB]) ?\d{{3}} ?\d{{3}} ?\d\d", _is_nir),
    _kind("resident_id", r"[1-6]\d{5}(?:19|20)\d{9}[\dXx]", _is_resident),
    _kind("card", rf"\d{{13,19}}|{_FOURS}|3\d{{3}}([ -])\d{{6}}\2\d{{4,5}}", is_card),
    # The sixteen alone, where nineteen did not hold: a security code behind them.
    _kind("card", r"\d{4}([ -])\d{4}\1\d{4}\1\d{4}", is_card),
    _kind("ssn", r"(?!000|666|9)\d{3}([ -])(?!00)\d\d\1(?!0000)\d{4}"),
    _kind("nino", rf"{_PREFIX}(?: ?\d\d){{3}} ?[A-D]"),
    _kind("dni", r"(?:\d{8}|[XYZ][ -]?\d{7})[ -]?[A-Z]", _is_dni),
)  # fmt: skip
