"""name -> module: the file name is the registry.

`find("models", "gpt")` returns `research.models.gpt.make`; a dotted name is the user's own module.
"""

import importlib
import importlib.util
import inspect
import keyword
import pkgutil
import sys
from collections.abc import Callable, Iterable
from types import ModuleType

from research.arguments import InputError, check, complete, nearest


def find(
    folder: str, name: str, fallback: object = None, function: str = "make"
) -> Callable | None:
    """Returns `make` of the module `name` in research/`folder`, or what `fallback` (optax) calls
    `name` if that returns a GradientTransformation. Another `function` may be missing: None.

    Raises InputError for an unknown name, naming the nearest one, and for a module of the user's
    that fails. Nothing is imported for what is no name or belongs to Python itself.
    """
    parts = name.split(".")
    legal = all(part.isascii() and part.isidentifier() for part in parts)
    if not legal or any(map(keyword.iskeyword, parts)) or len(name) > 200:
        advice = f"name a file of research/{folder}, or a module of your own like package.module"
        raise InputError(f"{name!r:.80} is not in research/{folder} and no module; {advice}")
    if len(parts) > 1 and parts[0] in sys.stdlib_module_names:
        raise InputError(f"{name!r} belongs to Python; name a module of your own")
    path = name if len(parts) > 1 else f"research.{folder}.{name}"
    module = _module(path) if not name.startswith("_") else None
    if module is not None:
        if function != "make":
            return getattr(module, function, None)
        if not callable(getattr(module, "make", None)):
            raise InputError(f"{path} has no function `make`; add one, as in research/{folder}/")
        return module.make
    found = getattr(fallback, name, None)
    if "GradientTransformation" in str(getattr(found, "__annotations__", {}).get("return")):
        return found
    raise InputError(f"{name!r} is not in research/{folder}{nearest(name, names(folder))}")


def section(folder: str, given: dict, where: str, supplied: Iterable[str] = ()) -> dict:
    """Returns a section of a config that names a file of `folder`, complete by the signature of its
    `make`, but for the arguments that are `supplied`. A `make` that takes **sections of its own
    folder (a mix of data) has one for each of its `names`, without the arguments that it shares.

    Raises InputError naming `where` and the key.
    """
    given = dict(given)
    if "name" not in given:
        raise InputError(f"{where}.name is missing; it names a file in research/{folder}")
    name = check(given.pop("name"), str, f"{where}.name")
    make = find(folder, name)
    parameters, parts = inspect.signature(make).parameters, {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        if "names" in supplied:
            raise InputError(f"{where}.name={name} is one of several itself; name its parts there")
        names = check(given.get("names", ()), tuple, f"{where}.names")
        for part in names:
            if check(part, str, f"{where}.names") in parameters or names.count(part) > 1:
                raise InputError(f"{where}.names: {part!r} is taken; name each part otherwise")
            inner = check(given.pop(part, {}), dict, f"{where}.{part}")
            for key in inner.keys() & parameters.keys() - set(supplied):
                raise InputError(f"{where}.{part}.{key} is the same for all; set {where}.{key}")
            shared = (*supplied, *parameters)
            parts[part] = section(folder, inner, f"{where}.{part}", shared)
        for key in given.keys() - parameters.keys():
            if isinstance(given[key], dict):
                raise InputError(f"{where}.{key} is not in {where}.names={names}; add it there")
    return {"name": name} | complete(make, given, where, supplied) | parts


def _module(path: str) -> ModuleType | None:
    try:
        return importlib.import_module(path) if importlib.util.find_spec(path) else None
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}."):
            return None  # the package that it would be in
        if path.startswith("research."):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} cannot be imported ({reason}); mend it") from error


def names(folder: str) -> list[str]:
    """Returns the names that `folder` offers, sorted."""
    package = importlib.import_module(f"research.{folder}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))
