"""Google Cloud Storage in memory, behind its JSON API on a port of this machine, made to fail.

    with serving() as server:
        subprocess.run([..., "--workdir=gs://bucket/run"], env={**os.environ, **server.env})
        server.fail(2, status=503, match="POST .*metrics")  # the next two such requests
        server.objects["bucket/run/config.json"].data, server.counts["upload"]

It does what gcsfs, tensorstore and google-cloud-storage ask of storage/docs/json_api/v1; every
bucket exists. A change is atomic and checks `ifGenerationMatch`; 0 means "create if absent".
"""

import base64
import collections
import contextlib
import datetime
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

PATH = re.compile(r"/(upload/|download/)?storage/v1/b/([^/]+)(?:/o(?:/([^/]+)(?:/(\w+)/(.*))?)?)?")


class Object(NamedTuple):
    """One generation of an object."""

    data: bytes
    generation: int
    updated: str


class Refused(Exception):
    """An answer that is not a success: Refused(status, message)."""


class Server(ThreadingHTTPServer):
    """The store; `objects` maps "bucket/name" to its Object, `counts` counts requests by kind and
    refusals by status, and `log` has a line "METHOD path?query" for each request."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.objects: dict[str, Object] = {}
        self.counts, self.log, self.changing = collections.Counter(), [], threading.RLock()
        self.sessions, self.number = {}, itertools.count(1)  # of resumable uploads
        self.faults: list[tuple] = []  # still to come

    @property
    def env(self) -> dict[str, str]:
        """The environment variables that point every client library of a process here."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs and google-cloud-storage
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it asks for the layout over gRPC
            "EPATH_USE_TF": "false",  # else epath prefers TensorFlow, where that is installed
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        }

    def fail(self, k: int, status: int = 503, match: str = "", after: bool = False) -> None:
        """Makes the next `k` matching lines of `log` fail; `after`: only the answer is lost."""
        self.faults += [(status, re.compile(match), after)] * k

    def handle_error(self, *_: object) -> None: ...  # clients hang up on what they need no more

    def names(self, prefix: str = "") -> list[str]:
        """Returns the sorted names, as in "bucket/run/config.json", that start with `prefix`."""
        return sorted(name for name in list(self.objects) if name.startswith(prefix))

    def get(self, path: str, query: dict) -> Object:
        """Returns an object, if there is one and the query's conditions hold."""
        generation = str(self.objects[path].generation) if path in self.objects else None
        if generation is None or query.get("generation", generation) != generation:
            raise Refused(404, f"No such object: {path}")
        self.check(path, query)
        if query.get("ifGenerationNotMatch") == generation:
            raise Refused(304, "Not modified")
        return self.objects[path]

    def check(self, path: str, query: dict) -> None:
        """Refuses when `ifGenerationMatch` asks for another generation than the present one."""
        present = str(self.objects[path].generation if path in self.objects else 0)
        if query.get("ifGenerationMatch", present) != present:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")

    def put(self, path: str, data: bytes, query: dict) -> dict:
        """Writes an object, whole or not at all."""
        with self.changing:
            self.check(path, query)
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            self.objects[path] = Object(data, next(self.number), now)
            return self.describe(path)

    def describe(self, path: str) -> dict:
        """Returns what the API tells of an object."""
        (bucket, _, name), (data, generation, updated) = path.partition("/"), self.objects[path]
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        told = {"kind": "storage#object", "bucket": bucket, "name": name, "md5Hash": md5}
        told |= {"generation": str(generation), "size": str(len(data)), "updated": updated}
        return told | {"timeCreated": updated, "metageneration": "1"}

    def list(self, bucket: str, query: dict) -> dict:
        """Returns a page of a listing; a folder is what goes up to the first delimiter."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter") or "\0"
        start = max(query.get("startOffset", ""), query.get("pageToken", ""))
        size = min(int(query.get("maxResults", 1000)), 1000)
        page = {"kind": "storage#objects", "items": (items := []), "prefixes": (folders := [])}
        with self.changing:
            for path in self.names(f"{bucket}/{prefix}"):
                name = path.partition("/")[2]
                first, cut, _ = name[len(prefix) :].partition(delimiter)
                folder = prefix + first + cut if cut else None
                if not start <= name < query.get("endOffset", "\U0010ffff") or folder in folders:
                    continue
                if len(items) + len(folders) == size:
                    return page | {"nextPageToken": name}
                (folders if folder else items).append(folder or self.describe(path))
        return page


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        query = dict(parse_qsl(query))
        line = f"{self.command} {unquote(self.path)}"
        if query.get("uploadType") == "multipart":  # its name is in the body
            query["name"] = re.search(rb'"name": *"([^"]+)"', body)[1].decode()
            line += f"&name={query['name']}"
        self.server.log.append(line)
        with self.server.changing:
            fault = next((f for f in self.server.faults if f[1].search(line)), (None, None, True))
            self.server.faults.remove(fault) if fault[0] else None
        try:
            reply = self.route(path, query, body) if fault[2] else None
            if fault[0]:
                raise Refused(fault[0], "made to fail")
        except Refused as error:
            reply = error.args[0], {"error": {"code": error.args[0], "message": error.args[1]}}, {}
            self.server.counts[error.args[0]] += 1
        status, content, headers = reply
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        data = b"" if status == 304 else data
        self.send_response(status)
        for name, value in ({"Content-Length": len(data)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_: object) -> None: ...

    def route(self, path: str, query: dict, body: bytes) -> tuple:
        """Does what is asked and returns status, content and headers."""
        store, found = self.server, PATH.fullmatch(path)
        if path.startswith("/session/"):
            return self.resume(path, body)
        if found is None:
            raise Refused(501, f"the fake has no {self.command} {path}")
        bucket, name, verb, target = (unquote(part or "") for part in found.group(2, 3, 4, 5))
        kind = verb or ("media" if query.get("alt") == "media" else self.command.lower())
        if not name:
            kind = "upload" if found[1] else "list" if path.endswith("/o") else "bucket"
        store.counts[kind] += 1
        path = f"{bucket}/{name}"
        if kind in ("bucket", "list"):
            here = {"kind": "storage#bucket", "name": bucket, "location": "US"}
            return 200, here if kind == "bucket" else store.list(bucket, query), {}
        if kind == "upload":
            return self.upload(f"{bucket}/{query['name']}", query, body)
        with store.changing:
            present = store.get(path, {} if verb else query)
            done = b""
            if verb:  # moveTo/o/NAME or rewriteTo/b/BUCKET/o/NAME
                there, _, new = f"/{target}".partition("/o/")
                new = f"{there.removeprefix('/b/') or bucket}/{new}"
                done = store.put(new, present.data, query) | {"done": True}
            if kind in ("moveTo", "delete"):
                del store.objects[path]
            if kind == "media":
                return self.contents(present)
            return 200, store.describe(path) if kind == "get" else done, {}

    def contents(self, found: Object) -> tuple:
        """Returns what the Range header asks for."""
        size, headers = len(found.data), {"x-goog-generation": found.generation}
        wanted = self.headers.get("Range", "")
        start, stop = re.fullmatch(r"(?:bytes=(\d*)-(\d*))?", wanted).groups()
        if not wanted:
            return 200, found.data, headers
        first = int(start) if start else max(size - int(stop), 0)  # "-5" is the last five
        last = min(int(stop) + 1, size) if start and stop else size
        if first >= last:
            raise Refused(416, "The requested range cannot be satisfied.")
        headers["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
        return 206, found.data[first:last], headers

    def upload(self, path: str, query: dict, body: bytes) -> tuple:
        """Takes an object in one request, or opens a session for several."""
        if query["uploadType"] == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            part = re.split(rb"\r?\n\r?\n", body.split(b"--" + boundary)[2], maxsplit=1)[1]
            body = re.sub(rb"\r?\n\Z", b"", part)
        if query["uploadType"] != "resumable":
            return 200, self.server.put(path, body, query), {}
        self.server.check(path, query)
        location = f"/session/{next(self.server.number)}/{path}"
        self.server.sessions[location] = {"path": path, "data": b"", "query": query, "done": None}
        return 200, b"", {"Location": self.server.url + location}

    def resume(self, location: str, body: bytes) -> tuple:
        """Takes a chunk; the last one makes the object, and is answered alike if it comes again."""
        session = self.server.sessions.get(unquote(location))
        if session is None or self.command == "DELETE":
            return 499 if self.server.sessions.pop(unquote(location), None) else 404, b"", {}
        if session["done"] is None:
            span = self.headers["Content-Range"]  # bytes 0-99/*, bytes 100-120/121, bytes */0
            start, total = re.search(r"(?:(\d+)-|\*).*/(.+)", span).groups()
            session["data"] = session["data"][: int(start)] + body if start else session["data"]
            got = len(session["data"])
            if total != str(got):
                return 308, b"", {"Range": f"bytes=0-{got - 1}"} if got else {}
            session["done"] = self.server.put(session["path"], session["data"], session["query"])
        return 200, session["done"], {}


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Runs a store in the background until the block ends."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
