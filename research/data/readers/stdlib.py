"""The source text of the running Python's standard library: real text that is always there."""

import os
import sysconfig
from pathlib import Path

from research.data.readers import Records
from research.data.readers.files import documents

# Tests, bundled programs and packages, compiled files.
SKIPPED = set(
    "test tests idlelib lib2to3 turtledemo _bundled site-packages dist-packages __pycache__".split()
)


def make(path: str | None, split: str, field: str) -> Records:
    """Returns the .py files, one document each; about 5 % held out by a hash of the relative path.

    `path` may name another library's folder. Raises InputError if it holds no source text.
    """
    root = Path(path or sysconfig.get_paths()["stdlib"])
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = set(folders) - SKIPPED
        names += [Path(folder, name).relative_to(root) for name in files if name.endswith(".py")]
    # What the build of this Python wrote is not library source, and differs between machines.
    names = [name.as_posix() for name in names if not name.name.startswith("_sysconfigdata")]
    return documents(root, names, split, "install Python's library sources, or use reader=files")
