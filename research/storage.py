"""What a workdir in an object store (gs://bucket/run) needs beside epath and fsspec.

    if storage.is_remote(path): ...        # no rename, no append, no modes
    storage.create(path, data)             # FileExistsError if it is there: atomic in both worlds

gs:// goes through research/gcs.py, whose failures are StoreErrors.
"""

import os

import fsspec
from etils import epath

from research.arguments import RunError

# Where TensorFlow is installed, epath would leave gs:// to it, past all that is here.
os.environ.setdefault("EPATH_USE_TF", "false")
for protocol in ("gs", "gcs"):
    fsspec.register_implementation(
        protocol, "research.gcs.Store", clobber=True, errtxt="the package for it is missing"
    )


class StoreError(RunError, OSError):
    """The store did not do what it was asked, after all tries. It says nothing of what is in it."""

    code = 74


def is_remote(path: os.PathLike | str) -> bool:
    """Tells whether a path is in an object store."""
    return "://" in os.fspath(path)


def find(folder: os.PathLike | str) -> list[str]:
    """Returns the relative names of all files in a remote folder and below it, sorted. It is one
    request for a thousand of them, where is_dir() would be two for each."""
    files, root = fsspec.url_to_fs(os.fspath(folder))
    return sorted(name.removeprefix(f"{root}/") for name in files.find(root))


def create(path: os.PathLike | str, data: bytes) -> None:
    """Writes a file that must not be there yet: of two who try, one gets FileExistsError.
    In a store that is one request, where open(path, "xb") would be several."""
    files, name = fsspec.url_to_fs(os.fspath(path))
    files.pipe_file(name, data, mode="create")


def move_aside(path: epath.Path, ending: str, first: str) -> None:
    """Renames a folder to NAME + ending (or that and a number, where it is taken). A store cannot:
    there it is copied file by file, after removing the file `first`, by which others know it."""
    number, target = 1, path.with_name(path.name + ending)
    while target.exists():
        number, target = number + 1, path.with_name(f"{path.name}{ending}.{number}")
    if not is_remote(path):
        path.rename(target)
        return
    (path / first).unlink(missing_ok=True)
    for name in find(path):
        (path / name).copy(target / name)
    path.rmtree()
