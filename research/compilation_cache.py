"""jax's persistent compilation cache, with a SHA-256 in every entry that each read checks.

    compilation_cache.keep("cache/xla")

An entry holds machine code. jax compresses it with zstandard where that is installed, without a
checksum: of 60 single flipped bits 12 then crashed the process, 1 silently changed the answer and
10 ran unnoticed (experiments/faults/cache.py). Here an entry is jax's own bytes followed by
SHA-256(key, bytes); plain jax reads it too. One that does not fit is a miss: 120 flips of 120.

The digest finds damage, not malice: whoever may write in the folder may run code as its user.
"""

import contextlib
import hashlib
import logging
import os
from typing import Any

import jax
import jax.experimental.compilation_cache.compilation_cache

log = logging.getLogger("anneal")

# XLA's own files beside the entries: tuned GPU kernels, unchecked, and a torn one fails a compile.
XLA_CACHES = "jax_persistent_cache_enable_xla_caches"
SIZE = hashlib.sha256().digest_size


def keep(folder: str) -> None:
    """Keeps compiled programs in `folder` (local, or gs://...) for the next process to read.

    A damaged, truncated, emptied or unsigned entry is named in a warning, removed and compiled
    again. A local folder is made for its owner only (0o700). jax's options hold: a size limit
    (JAX_COMPILATION_CACHE_MAX_SIZE), or no cache (JAX_ENABLE_COMPILATION_CACHE=false). XLA's GPU
    autotuning files are kept only if JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES asks for them.

    Raises nothing: a folder that cannot be used, or a jax whose cache is built in another way,
    means a warning and no cache.
    """
    try:
        _turn_on(folder)
    except Exception as error:  # of the storage or of jax's internals: neither stops a training
        jax.config.update("jax_compilation_cache_dir", None)
        reason = f"{type(error).__name__}: {error}"
        log.warning("no compilation cache in %s, every start compiles anew: %s", folder, reason)


def _turn_on(folder: str) -> None:
    jax.config.update("jax_compilation_cache_dir", None)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()  # one may be open, unchecked
    from jax._src import compilation_cache, compilation_cache_interface, lru_cache

    class CheckedCache(_Checked, lru_cache.LRUCache):
        """What jax builds in place of its LRUCache."""

    if compilation_cache_interface.CacheInterface.__abstractmethods__ != {"get", "put"}:
        raise NotImplementedError(f"jax {jax.__version__} reads its cache in a way not known here")
    if "://" not in folder:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError("the folder cannot be written")
    compilation_cache.LRUCache = CheckedCache
    jax.config.update("jax_compilation_cache_dir", folder)
    if XLA_CACHES.upper() not in os.environ:
        jax.config.update(XLA_CACHES, "none")
    if not jax.config.jax_enable_compilation_cache:
        return
    # Built now, not at the first compilation, to see that it is ours that jax will ask.
    compilation_cache._initialize_cache()
    cache = compilation_cache._cache
    if not isinstance(getattr(cache, "_base_cache", cache), CheckedCache):
        compilation_cache.reset_cache()
        raise NotImplementedError(f"jax {jax.__version__} builds its cache in a way not known here")


class _Checked:
    """Mixed into jax's LRUCache: what `put` signs, `get` checks."""

    def get(self, key: str) -> bytes | None:
        stored = super().get(key)
        if stored is None:
            return None
        value, digest = stored[:-SIZE], stored[-SIZE:]
        if digest == _digest(key, value):
            return value
        try:
            self._remove(key)
            done = "removed, compiled again"
        except OSError as error:
            done = f"compiled again, but not removed: {error}"
        path = self._file(key, "cache")
        log.warning("%s is damaged or was not written by anneal; %s", path, done)
        return None

    def put(self, key: str, value: bytes) -> None:
        try:
            super().put(key, value + _digest(key, value))
        except OSError:  # a full disk: the torn entry would fill it further and stop jax's eviction
            with contextlib.suppress(OSError):
                self._remove(key)
            raise  # jax warns and goes on

    def _remove(self, key: str) -> None:
        """Makes place: LRUCache.put leaves a file that exists as it is."""
        if self.eviction_enabled:
            self.lock.acquire(timeout=self.lock_timeout_secs)
        try:
            self._file(key, "cache").unlink(missing_ok=True)
            self._file(key, "atime").unlink(missing_ok=True)
        finally:
            if self.eviction_enabled:
                self.lock.release()

    def _file(self, key: str, kind: str) -> Any:
        return self._path / f"{key}-{kind}"


def _digest(key: str, value: bytes) -> bytes:
    """The key is part of it, so that an entry under another's name does not pass."""
    return hashlib.sha256(key.encode() + b"\0" + value).digest()
