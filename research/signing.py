"""Signatures over a file or a folder, made and checked with elliptic curve keys.

    sign("export", "key.pem", "export.sig");  verify("export", "key.pub", "export.sig")

The keys (with -aes256 the private one is encrypted; ANNEAL_KEY_PASSWORD then holds its password):

    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem
    openssl pkey -in key.pem -pubout -out key.pub

A signature lists the SHA-256 of every file, as OpenSSF model signing does (`python -m model_signing
verify key` checks it too). It says who signed, not that nothing newer exists. To sign a checkpoint
sign its manifest.json, which lists its other files.
"""

import ast
import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from research.arguments import InputError, RunError

PASSWORD = "ANNEAL_KEY_PASSWORD"
StrPath = str | os.PathLike


class TamperedError(RunError):
    """What lies there is not what was signed: altered, signed by another key, or not at all."""


def sign(path: StrPath, private_key: StrPath, signature: StrPath) -> None:
    """Signs `path`, a file (local or gs://...) or a local folder, into the file `signature`.

    Raises InputError for a missing package, a bad key, nothing at `path`, links in it or the
    signature in it; OSError where one cannot be read or written.
    """
    config = _config(private_key, "private key")
    with tempfile.TemporaryDirectory() as folder:
        content, target, made = _here(path, folder), _path(signature), Path(folder, "signature")
        if target.is_relative_to(content):
            raise InputError(f"{signature} is or lies in what it signs; put it beside {path}")
        try:
            config.sign(content, made)
        except ValueError as error:
            raise InputError(f"{path} cannot be signed: {error}") from None
        target.write_bytes(made.read_bytes())


def verify(path: StrPath, public_key: StrPath, signature: StrPath) -> None:
    """Checks that `path`, only hashed, is file for file what the owner of `public_key` signed.

    Raises TamperedError if not; InputError for a missing package, a bad key, nothing at `path`;
    OSError where either cannot be read.
    """
    config = _config(public_key, "public key")
    with tempfile.TemporaryDirectory() as folder:
        content = _here(path, folder)
        try:
            config.verify(content, _here(signature, folder))
        except OSError:  # the storage failed, which says nothing about the content
            raise
        except Exception as error:  # whatever a forged or missing signature leads to
            told = f"{path} is not what {public_key} signed in {signature}: {_in_words(error)}"
            raise TamperedError(f"{told}; do not use it, fetch it again") from None


def check_keys(private_key: StrPath | None, public_key: StrPath | None) -> None:
    """Raises InputError, as `sign` and `verify` would much later, for a key that cannot be used."""
    for key, kind in ((private_key, "private key"), (public_key, "public key")):
        if key is not None:
            _config(key, kind)


def _config(key: StrPath, kind: str) -> Any:
    try:
        import model_signing as lib
    except ImportError:
        raise InputError("a signature needs model-signing; pip install 'anneal[sign]'") from None
    # By default it passes over .gitattributes and the like, which anyone could then add.
    files = lib.hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
    word = os.environ.get(PASSWORD, "").encode() or None  # its hint says str, it needs bytes
    try:
        if kind == "public key":
            config = lib.verifying.Config().use_elliptic_key_verifier(public_key=key)
        else:
            config = lib.signing.Config().use_elliptic_key_signer(private_key=key, password=word)
    except Exception as error:  # another type for every kind of wrong file
        told = f"{key}: {error}; expected a PEM file, a {kind} of the curve P-256, P-384 or P-521"
        raise InputError(f"{told}; {PASSWORD} opens an encrypted one") from None
    return config.set_hashing_config(files)


def _path(path: StrPath) -> Any:
    if "://" not in os.fspath(path):
        return Path(path).resolve()  # a link that the caller names is followed, others are refused
    from etils import epath

    return epath.Path(path)


def _here(path: StrPath, folder: str) -> Path:
    """Returns the path on this machine: of what is local, or of a copy in `folder`."""
    source = _path(path)
    if not source.exists():
        raise InputError(f"{path} does not exist")
    if isinstance(source, Path):
        return source
    if source.is_dir():
        raise InputError(f"{path} is a remote folder; copy it to this machine first")
    return Path(source.copy(Path(tempfile.mkdtemp(dir=folder), source.name)))


def _in_words(error: Exception) -> str:
    text = str(error)
    if text.startswith("Signature mismatch: ["):  # a printed list: each file, with its digests
        with contextlib.suppress(ValueError, SyntaxError):
            found = ast.literal_eval(text.partition(": ")[2])
            text = "; ".join(line.partition(": Expected ")[0] for line in found)
    elif not isinstance(error, InputError) and not text.startswith(("Key mismatch", "Cannot use")):
        text = f"the signature is damaged ({type(error).__name__} {text})"
    return " ".join(text.replace("'.'", "its content").split())[:400]
