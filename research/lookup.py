"""name -> module: the file name is the registry.

`find("models", "gpt")` returns `research.models.gpt.make`; a dotted name is the user's own module.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable

from research.arguments import InputError, nearest


def find(folder: str, name: str, fallback: object = None) -> Callable:
    """Returns `make` of the module `name` in research/`folder`, or what `fallback` (optax) calls
    `name` if that returns a GradientTransformation.

    Raises InputError for an unknown name, naming the nearest one.
    """
    path = name if "." in name else f"research.{folder}.{name}"
    try:
        known = importlib.util.find_spec(path) is not None
    except ImportError:  # a parent package is missing, or the name begins with a dot
        known = False
    if known:
        module = importlib.import_module(path)
        if not hasattr(module, "make"):
            raise InputError(f"{path} has no function `make`; add one, as in research/{folder}/")
        return module.make
    found = getattr(fallback, name, None)
    if "GradientTransformation" in str(getattr(found, "__annotations__", {}).get("return")):
        return found
    raise InputError(f"{name!r} is not in research/{folder}{nearest(name, names(folder))}")


def names(folder: str) -> list[str]:
    """Returns the names that `folder` offers, sorted."""
    package = importlib.import_module(f"research.{folder}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))
