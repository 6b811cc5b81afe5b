"""A small server of files for where there is no nginx: ranges by sendfile, a listing, and a registry that only redirects.

A program of its own. Its argument is a JSON file with one object a listener: `port`; `folder` for a web server (its files below
`blobs/` are not listed); `manifests` (URL path to file, media type, digest) and `blobs` (a URL) for a redirecting registry.
"""
import html
import http.server
import io
import json
import os
import socket
import sys
import threading
import urllib.parse


class Counted(io.BufferedIOBase):
    """Writes to a socket as to a file, which the kernel counts (/proc/PID/io), as it does not count what is sent."""

    def __init__(self, connection):
        self.connection = connection

    def writable(self):
        return True

    def write(self, data):
        with memoryview(data) as view:
            at = 0
            while at < view.nbytes:
                at += os.write(self.connection.fileno(), view[at:])
            return at


class Answering(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wfile = Counted(self.connection)

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def headed(self, kind, length):
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))

    def log_message(self, *_):
        pass


class Files(Answering):
    """A folder's files, whole or one range of them, and its listing."""

    def answer(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        name = os.path.basename(path)
        if not name:
            return self.listing()
        below = "blobs" if path.startswith("/blobs/") else "names"
        try:
            file = open(os.path.join(self.server.folder, below, name), "rb")
        except OSError:
            return self.send_error(404)
        with file:
            self.send(file)

    def send(self, file):
        size = os.fstat(file.fileno()).st_size
        wanted = self.range(size)
        if wanted is None:
            return self.send_error(416)
        start, stop = wanted
        self.send_response(206 if "Range" in self.headers else 200)
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.headed("application/octet-stream", stop - start)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", self.date_time_string(os.fstat(file.fileno()).st_mtime))
        self.end_headers()
        while self.command == "GET" and start < stop:
            start += os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)

    def range(self, size):
        """The bytes asked for as (start, stop); None where there are none such."""
        text = self.headers.get("Range")
        if text is None:
            return 0, size
        first, _, last = text.removeprefix("bytes=").partition("-")
        if not first:
            return max(0, size - int(last)), size
        start, stop = int(first), min(int(last) + 1 if last else size, size)
        return (start, stop) if start < stop else None

    def listing(self):
        names = map(html.escape, sorted(os.listdir(os.path.join(self.server.folder, "names"))))
        lines = "".join(f'<a href="{name}">{name}</a>\n' for name in names)
        text = f"<html><head><title>Index of /</title></head><body><pre>\n{lines}</pre></body></html>\n".encode()
        self.send_response(200)
        self.headed("text/html", len(text))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text)


class Redirecting(Answering):
    """A registry that has manifests itself, and sends who wants a blob elsewhere."""

    def answer(self):
        path = urllib.parse.urlsplit(self.path).path
        if path == "/v2/":
            return self.short(200)
        if "/blobs/" in path:
            return self.short(307, Location=self.server.blobs + path.rpartition("/")[2])
        if path not in self.server.manifests:
            return self.short(404)
        name, kind, digest = self.server.manifests[path]
        with open(name, "rb") as file:
            body = file.read()
        self.send_response(200)
        self.send_header("Docker-Content-Digest", digest)
        self.headed(kind, len(body))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def short(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Server(http.server.ThreadingHTTPServer):
    request_queue_size, daemon_threads = 256, True


def serve(listener):
    handler = Files if "folder" in listener else Redirecting
    server = Server(("127.0.0.1", listener["port"]), handler)
    vars(server).update({key: value for key, value in listener.items() if key != "port"})
    return server


if __name__ == "__main__":
    with open(sys.argv[1]) as config:
        servers = [serve(listener) for listener in json.load(config)]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()
