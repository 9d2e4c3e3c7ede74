"""name -> module: the file name is the registry.

`find("models", "gpt")` returns `research.models.gpt.make`; a dotted name is the user's own module.
"""

import importlib
import importlib.util
import inspect
import keyword
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Annotated

from research.arguments import Files, InputError, check, complete, nearest


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
    `make`, but for the arguments that are `supplied`. A `make` that takes **sections has one for
    each name in those of its arguments that are Files, or, a mix of data, for each of its `names`:
    a source of its own folder, without the arguments that it shares.

    Raises InputError naming `where` and the key.
    """
    given = dict(given)
    if "name" not in given:
        raise InputError(f"{where}.name is missing; it names a file in research/{folder}")
    name = check(given.pop("name"), str, f"{where}.name")
    make, parts = find(folder, name), {}
    parameters = inspect.signature(make).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        folders = _folders(make)
        if not folders and "names" in supplied:
            raise InputError(f"{where}.name={name} is one of several itself; name its parts there")
        lists = {key: _names(given, key, parameters, where) for key in folders or ("names",)}
        for key, names in lists.items():
            for part in names:
                inner = check(given.pop(part, parts.get(part, {})), dict, f"{where}.{part}")
                if folders:
                    parts[part] = complete(find(folders[key], part), inner, f"{where}.{part}")
                    continue
                for own in inner.keys() & parameters.keys() - set(supplied):
                    raise InputError(f"{where}.{part}.{own} is the same for all; set {where}.{own}")
                shared = (*supplied, *parameters)
                parts[part] = section(folder, inner, f"{where}.{part}", shared)
        for key in given.keys() - parameters.keys():
            if isinstance(given[key], dict):
                held = " or ".join(f"{where}.{own}={names}" for own, names in lists.items())
                raise InputError(f"{where}.{key} is not in {held}; add it there")
    return {"name": name} | complete(make, given, where, supplied) | parts


def _folders(make: Callable) -> dict[str, str]:
    """Returns the arguments of `make` that are names of files, and the folders of those."""
    return {
        key: condition.folder
        for key, hint in typing.get_type_hints(make, include_extras=True).items()
        if typing.get_origin(hint) is Annotated
        for condition in typing.get_args(hint)
        if isinstance(condition, Files)
    }


def _names(given: dict, key: str, parameters: Mapping, where: str) -> tuple[str, ...]:
    """Returns the names of sections that the argument `key` holds."""
    default = parameters[key].default
    names = given.get(key, () if default is inspect.Parameter.empty else default)
    names = check(names, tuple, f"{where}.{key}")
    for part in names:
        if check(part, str, f"{where}.{key}") in parameters or names.count(part) > 1:
            raise InputError(f"{where}.{key}: {part!r} is taken; name each part otherwise")
    return names


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
