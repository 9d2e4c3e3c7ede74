"""name -> module: the file name is the registry.

`find("models", "gpt")` returns `research.models.gpt.make`; a dotted name is the user's own module.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable

from research.arguments import InputError, nearest


def find(folder: str, name: str, fallback: object = None) -> Callable:
    """Returns `make` of the module `name` in research/`folder`, or attribute `name` of `fallback`.

    Raises InputError for an unknown name, naming the nearest one.
    """
    path = name if "." in name else f"research.{folder}.{name}"
    try:
        known = importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:  # a parent package is missing
        known = False
    if known:
        module = importlib.import_module(path)
        if not hasattr(module, "make"):
            raise InputError(f"{path} has no function `make`; add one, as in research/{folder}/")
        return module.make
    if fallback is not None and callable(getattr(fallback, name, None)):
        return getattr(fallback, name)
    raise InputError(f"{name!r} is not in research/{folder}{nearest(name, names(folder))}")


def names(folder: str) -> list[str]:
    """Returns the names that `folder` offers, sorted."""
    package = importlib.import_module(f"research.{folder}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))
