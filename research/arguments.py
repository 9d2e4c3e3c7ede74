"""What a config may say: types with ranges, read from the signatures that receive the values.

A `make` states its arguments once, in its signature, and nothing else describes them:

    def make(num_layers: Count = 12, dropout: Fraction = 0.0, mlp: Literal["gelu", "swiglu"] = ...)

`complete(make, given, "config.model")` then refuses what does not fit and fills in the defaults.
"""

import ast
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, NamedTuple


class InputError(Exception):
    """Everything a user can get wrong. One line: what was given, what was expected, what to do."""

    code = 2


class RunError(Exception):
    """What went wrong while a run was under way, in one line: not the user's input but storage,
    hardware or numbers. The command ends with `code`."""

    code = 1


class Range(NamedTuple):
    """Closed interval a number must lie in; `above` and `below` exclude an end."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        is_low = value <= self.low if self.above else value < self.low
        is_high = value >= self.high if self.below else value > self.high
        return not (is_low or is_high)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low}"
        high = f" and {'below' if self.below else 'at most'} {self.high}"
        return low + (high if self.high < math.inf else "")


class Files(NamedTuple):
    """Says of a tuple of names that each is a file of a folder, and has a section of its own:
    `pipeline: Annotated[tuple[str, ...], Files("data.augment")]` beside `**sections`."""

    folder: str


Count = Annotated[int, Range(1)]
Size = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Fraction = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, 1, below=True)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Precision = Literal["fp32", "bf16", "bf16_params", "fp16", "int8", "fp8", "fp64"]


# Words of a name that say its value is nobody's business, and values that give themselves away.
SECRET_NAME = re.compile(
    r"(?:^|[^a-z])(?:api_?key|key|token|secret|password|passwd|credentials?)(?:$|[^a-z])", re.I
)
SECRET_VALUE = re.compile(
    r"(?<=://)[^/@\s]+(?=@)|\b(?:hf_|ghp_|gho_|sk-|xox[bp]-|ya29\.|AKIA|AIza)[\w.-]{12,}"
)
MASK = "***"


def masked(name: str, value: Any) -> Any:
    """Returns `value` as it may be written down or shown: a secret, by its name or by its looks
    (access tokens, a password in a URL), as "***"."""
    if value is not None and SECRET_NAME.search(name):
        return MASK
    return SECRET_VALUE.sub(MASK, value) if isinstance(value, str) else value


class Text(str):
    """A value typed on the command line: it becomes what the signature asks for."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the closest option, else the list of them."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(options) or 'none'}"


def complete(function: Callable, given: dict, where: str, supplied: Iterable[str] = ()) -> dict:
    """Checks `given` against the signature of `function` and adds its defaults.

    `supplied` names arguments that the program itself passes: a config may not set them.
    Raises InputError naming `where` and the key.
    """
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in supplied and parameter.kind is not parameter.VAR_KEYWORD
    }
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError:  # optax names types that exist for type checkers only
        hints = {name: parameter.annotation for name, parameter in parameters.items()}
    for key in given:
        if key not in parameters:
            raise InputError(f"{where}.{key} is not known{nearest(key, parameters)}")
    result = {}
    for name, parameter in parameters.items():
        if name in given:
            result[name] = check(given[name], hints.get(name, Any), f"{where}.{name}")
        elif parameter.default is parameter.empty:
            raise InputError(f"{where}.{name} is missing; it has no default, so set it")
        else:
            result[name] = parameter.default
    return result


def check(value: Any, hint: Any, where: str) -> Any:
    """Returns `value` as the type that `hint` asks for; raises InputError if it does not fit."""
    if typing.get_origin(hint) is Annotated:
        base, *conditions = typing.get_args(hint)
        value = check(value, base, where)
        for condition in conditions:
            if isinstance(condition, Range) and value not in condition:
                shown = masked(where, value)
                raise InputError(f"{where}={shown!r} is out of range; expected {condition}")
        return value
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if type(None) in options and (value is None or value in (Text("None"), Text("null"))):
            return None
        options = [option for option in options if option is not type(None)]
        for option in options[:-1]:
            try:
                return check(value, option, where)
            except InputError:
                continue
        return check(value, options[-1], where)
    if typing.get_origin(hint) is Literal:
        options = typing.get_args(hint)
        if isinstance(value, Text) and not any(isinstance(option, str) for option in options):
            value = _parse(value, hint)
        if value not in options or isinstance(value, bool):  # True is 1, but not what is meant
            shown, known = masked(where, value), map(str, options)
            raise InputError(f"{where}={shown!r} is not an option{nearest(str(value), known)}")
        return options[options.index(value)]
    if isinstance(value, Text):
        value = _parse(value, hint)
    origin = typing.get_origin(hint) or hint
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if origin is tuple:
        value = _tuples(value)
    if isinstance(origin, type) and origin is not object:
        # bool is a subclass of int: layers=True would quietly be one layer.
        if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
            given = f"{masked(where, value)!r} ({type(value).__name__})"
            raise InputError(f"{where}={given} has the wrong type; expected {origin.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}={value} is not a finite number; expected a finite {hint}")
    return value


def _tuples(value: Any) -> Any:
    """Returns lists as the tuples they are meant to be, at every depth."""
    return tuple(map(_tuples, value)) if isinstance(value, tuple | list) else value


def _parse(text: str, hint: Any) -> Any:
    if hint is str:
        return str(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        try:
            return float(text)  # 'nan' and 'inf', to be refused by name
        except ValueError:
            # A bare list of names, as in --config.model.names=a,b
            is_tuple = (typing.get_origin(hint) or hint) is tuple
            return tuple(part.strip() for part in text.split(",")) if is_tuple else str(text)
