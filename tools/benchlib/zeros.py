"""A registry whose large blobs are zeros, which lie nowhere. A program of its own; its argument is the JSON file that
`rows/large.py` writes."""
import json
import pathlib
import sys
import urllib.parse

from files import Answering, Server

PIECE = bytes(1 << 20)


class Zeros(Answering):
    def answer(self):
        path = urllib.parse.urlsplit(self.path).path
        kind, name = path.split("/")[-2:]
        if kind == "manifests":
            name = self.server.tags.get(name, name)
            if name in self.server.files:
                return self.small(name, self.server.type)
        elif name in self.server.zeros:
            return self.zeros(self.server.zeros[name])
        elif name in self.server.files:
            return self.small(name, "application/octet-stream")
        self.headed(200 if path == "/v2/" else 404, "text/plain", 0)

    def small(self, digest, kind):
        body = self.server.files[digest]
        start, stop = self.begin(kind, len(body), digest)
        if self.command == "GET":
            self.wfile.write(body[start:stop])

    def zeros(self, size):
        at, stop = self.begin("application/octet-stream", size)
        while self.command == "GET" and at < stop:
            at += self.wfile.write(PIECE[:stop - at])

    def begin(self, kind, size, digest=None):
        """Sends the head of an answer; the range that its body has."""
        wanted = self.headers.get("Range")
        if not wanted:
            self.headed(200, kind, size, digest)
            return 0, size
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else size, size)
        self.headed(206, kind, stop - start, digest, f"bytes {start}-{stop - 1}/{size}")
        return start, stop

    def headed(self, status, kind, length, digest=None, extent=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        if extent:
            self.send_header("Content-Range", extent)
        self.end_headers()


if __name__ == "__main__":
    with open(sys.argv[1]) as config:
        told = json.load(config)
    server = Server(("127.0.0.1", told["port"]), Zeros)
    server.type = told["type"]
    server.tags = {one["tag"]: one["manifest"] for one in told["artifacts"]}
    # The index of 1 TiB has 32 MiB: to read all of it for a range would be most of what a mount waits for.
    server.files = {digest: pathlib.Path(path).read_bytes() for one in told["artifacts"] for digest, path in one["files"].items()}
    server.zeros = {digest: size for one in told["artifacts"] for digest, size in one["zeros"].items()}
    server.serve_forever()
