"""A bucket on this machine: as much of S3's interface as reading takes."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

DATE = "2026-01-01T00:00:00.000Z"


class Quiet(ThreadingHTTPServer):
    """Says nothing of a reader that is ended."""

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def bucket(name: str, objects: Mapping[str, bytes]) -> Iterator[str]:
    """The address of a server that has these objects in one bucket."""
    server = Quiet(("127.0.0.1", 0), _handler(name, objects))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _handler(name: str, objects: Mapping[str, bytes]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._object(body=False)

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path.strip("/") == name:
                asked = {key: values[0] for key, values in parse_qs(url.query).items()}
                self._send(200, _listing(name, objects, asked), "application/xml")
            else:
                self._object(body=True)

        def _object(self, body: bool) -> None:
            data = objects.get(unquote(urlsplit(self.path).path).removeprefix(f"/{name}/"))
            if data is None:
                return self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
            span = self.headers.get("Range")
            if span is None:
                return self._send(200, data, "binary/octet-stream", body=body)
            start, _, end = span.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or len(data) - 1), len(data) - 1)
            about = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            return self._send(206, data[first : last + 1], "binary/octet-stream", body, about)

        def _send(
            self,
            status: int,
            data: bytes,
            kind: str,
            body: bool = True,
            about: Mapping[str, str] | None = None,
        ) -> None:
            self.send_response(status)
            heads = {"Content-Type": kind, "Content-Length": str(len(data)), "ETag": '"0"'}
            heads |= {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", **(about or {})}
            for key, value in heads.items():
                self.send_header(key, value)
            self.end_headers()
            if body and self.command != "HEAD":
                self.wfile.write(data)

    return Handler


def _listing(name: str, objects: Mapping[str, bytes], asked: Mapping[str, str]) -> bytes:
    """What is below a prefix: objects, and common beginnings up to a delimiter."""
    prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
    keys, folders = [], set()
    for key in sorted(objects):
        if not key.startswith(prefix):
            continue
        head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        if mark:
            folders.add(prefix + head + mark)
        else:
            keys.append(key)
    parts = [
        f"<Contents><Key>{escape(key)}</Key><LastModified>{DATE}</LastModified>"
        f"<ETag>&quot;0&quot;</ETag><Size>{len(objects[key])}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for key in keys
    ]
    parts += [
        f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"
        for folder in sorted(folders)
    ]
    head = f"<Name>{name}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>"
    head += f"<KeyCount>{len(parts)}</KeyCount><MaxKeys>1000</MaxKeys>"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"{head}{''.join(parts)}</ListBucketResult>"
    ).encode()
