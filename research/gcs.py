"""gs:// for fsspec and epath, as a run needs it: fresh listings, and failures that are OSErrors.

Nothing imports this but fsspec, when a path begins with gs://; it needs gcsfs.
"""

import logging
from typing import Any

import aiohttp
import gcsfs
from gcsfs.retry import HttpError
from google.auth.exceptions import GoogleAuthError

from research.storage import StoreError

for name in ("gcsfs", "fsspec"):  # StoreError says it, in one line
    logging.getLogger(name).setLevel(logging.CRITICAL)


class Store(gcsfs.GCSFileSystem):
    """gcsfs tries six times, for half a minute; what it then raises is often no OSError."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A listing from before would hide what tensorstore and other processes have written.
        super().__init__(*args, **(kwargs | {"use_listings_cache": False}))

    async def _call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._call(method, path, *args, **kwargs)
        except (FileNotFoundError, FileExistsError):
            raise
        except (HttpError, aiohttp.ClientError, GoogleAuthError, OSError) as error:
            if isinstance(error, HttpError) and error.code == 416:
                raise  # gcsfs takes it for the end of a file
            # gcsfs goes by the first word: after "Forbidden" it tries another way.
            reason = " ".join(str(error).splitlines()) or type(error).__name__
            where = self._format_path(path, args)
            what = reason if where in reason else f"{reason} ({method} {where})"
            raise StoreError(what) from error

    async def _isdir(self, path: str) -> bool:
        try:
            return (await self._info(path))["type"] == "directory"
        except FileNotFoundError:
            return False  # and not for every OSError
