"""The source text of the running Python's standard library: real text that is always there."""

import os
import sysconfig
from pathlib import Path

from research.arguments import InputError
from research.data.readers import Records, files

# Tests, bundled programs, and what is generated for one machine or installed later.
SKIPPED = {
    *("test", "tests", "idlelib", "lib2to3", "turtledemo", "_bundled", "lib-dynload"),
    *("__pycache__", "site-packages", "dist-packages"),
}


def make(path: str | None, split: str, field: str) -> Records:
    """Returns one document per .py file, about 5 % held out by a hash of the relative path.

    `path` is another standard library's folder (None: the running Python's); `field` is not used.
    Raises InputError if there is no source text.
    """
    root = Path(path or sysconfig.get_paths()["stdlib"])
    names = []
    for folder, folders, found in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED]
        inside = Path(folder).relative_to(root)
        names += [(inside / name).as_posix() for name in found if name.endswith(".py")]
    names = [name for name in names if not name.startswith("_sysconfigdata")]
    if not names:
        raise InputError(
            f"{root} holds no .py files; install Python's library sources, or use reader=files"
        )
    return files.documents(root, names, split)
