"""ArrayRecord shards: each record is UTF-8 text, or a JSON object whose `field` is the text.

Shards named train* and validation* are those splits; without such names about 5 % of all records
are held out by a hash of shard name and index.
"""

import glob
import hashlib
import json
from pathlib import Path

from research.arguments import InputError
from research.data.readers import Records, decode, in_split, is_held_out
from research.data.source import RecordError


def make(path: str | None, split: str, field: str) -> Records:
    """Returns the records of `path`, a folder of *.array_record files or a glob pattern.

    The fingerprint covers names, sizes and the last 64 KiB of each shard, where its index lies.
    Raises InputError if there are none of this split, or a shard cannot be opened.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    is_held_out(split)  # refuses other names
    where = Path(path or "").expanduser()
    pattern = str(where / "*.array_record*" if where.is_dir() else where)
    shards = [Path(name) for name in sorted(glob.glob(pattern))]
    named = any(shard.name.startswith(("train", "validation")) for shard in shards)
    shards = [shard for shard in shards if not named or shard.name.startswith(split)]
    digest, readers, records = hashlib.sha256(f"{split} {field}".encode()), [], []
    for shard in shards:
        size = shard.stat().st_size
        with open(shard, "rb") as file:
            file.seek(max(size - (1 << 16), 0))
            digest.update(f"{shard.name} {size} ".encode() + hashlib.sha256(file.read()).digest())
        readers.append(ArrayRecordReader(str(shard)))
        if not readers[-1].ok():  # it says so only when asked, and then has no records
            raise InputError(f"{shard} is no ArrayRecord file, or its index is damaged; replace it")
        records += [
            (len(readers) - 1, index)
            for index in range(readers[-1].num_records())
            if named or in_split(f"{shard.name} {index}", split)
        ]
    if not records:
        raise InputError(f"data.path={path!r} has no ArrayRecord records of split {split}")

    def name(number: int) -> str:
        shard, index = records[number]
        return f"{shards[shard]} record {index}"

    def read(number: int) -> str:
        shard, index = records[number]
        try:
            (data,) = readers[shard].read([index])
        except RuntimeError as error:
            raise RecordError(f"{name(number)} cannot be read: {error}") from None
        return _text(decode(data, name(number)), field, name(number))

    return Records(len(records), name, read, digest.hexdigest())


def _text(text: str, field: str, name: str) -> str:
    try:
        record = json.loads(text) if text.startswith("{") else None
    except ValueError:
        return text
    if not isinstance(record, dict):
        return text
    if not isinstance(record.get(field), str):
        raise RecordError(f"{name} has no text in field {field!r}; it has {sorted(record)}")
    return decode(record[field].encode("utf-8", "surrogatepass"), name)
