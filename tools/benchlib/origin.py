"""Where the contenders fetch from: a registry with the model, and a plain web server with its files.

Both are on the loopback, in a folder of their own, and are ended by their process.
"""
import hashlib
import html
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from contextlib import contextmanager

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
LAYER = "application/vnd.cncf.model.{}.v1.raw"
REPOSITORY = "bench/p"


@contextmanager
def undisturbed():
    """Holds SIGINT and SIGTERM back: nothing is left between being started and being known, or half taken away."""
    held = []
    before = {number: signal.signal(number, lambda number, _: held.append(number))
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held and callable(before[held[0]]):
            before[held[0]](held[0], None)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def end(process, limit=10):
    """Ends a process that was started here, by its id, and waits until it is gone."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Server:
    """A process that answers over HTTP, and how much it has sent."""

    def __init__(self, command, folder, port, log, files):
        self.host, self.files = f"127.0.0.1:{port}", files
        with open(log, "w") as out:
            self.process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"}, start_new_session=True)
        until = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        end(self.process)
        with open(log) as said:
            raise SystemExit(f"tools/bench: {command[0]} does not start: {said.read()[-2000:]}")

    def sent(self):
        """Bytes that the process has written to anything: while it only answers, those it has sent."""
        with open(f"/proc/{self.process.pid}/io") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("wchar:"))

    def settled(self):
        """`sent`, once nothing has been sent for 0.2 s; after 3 s in any case."""
        before, until = self.sent(), time.monotonic() + 3
        while time.monotonic() < until:
            time.sleep(0.2)
            now = self.sent()
            if now == before:
                break
            before = now
        return before

    def warm(self):
        """Reads all files it serves, so that what it sends comes from memory."""
        for folder, _, names in os.walk(self.files):
            for name in names:
                with open(os.path.join(folder, name), "rb", buffering=0) as file:
                    while file.read(4 << 20):
                        pass

    def end(self):
        end(self.process)


def registry(folder):
    """Debian's docker-registry over `folder`."""
    if not shutil.which("docker-registry"):
        raise SystemExit("tools/bench: docker-registry is missing: apt install docker-registry")
    storage, port = os.path.join(folder, "storage"), free_port()
    os.makedirs(storage)
    config = {
        "version": "0.1", "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"cache": {"blobdescriptor": "inmemory"},
                    "filesystem": {"rootdirectory": storage, "maxthreads": 100}},
        "http": {"addr": f"127.0.0.1:{port}", "relativeurls": True, "secret": "loopback"},
    }
    with open(os.path.join(folder, "config.yml"), "w") as file:
        json.dump(config, file)  # JSON is YAML
    return Server(["docker-registry", "serve", "config.yml"], folder, port, os.path.join(folder, "log"), storage)


def web(folder, files):
    """nginx over the folder `files` where it is installed, else the server below; and which of the two it is."""
    os.makedirs(folder)
    port = free_port()
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    command, name = [sys.executable, __file__, files, str(port)], "Python's http.server, with ranges and sendfile"
    if nginx:
        command, name = [nginx, "-p", folder, "-c", os.path.join(folder, "nginx.conf"), "-e", "stderr"], "nginx"
        with open(os.path.join(folder, "nginx.conf"), "w") as file:
            file.write(f"daemon off; master_process off; pid {folder}/pid; events {{}} http {{ access_log off; sendfile on;"
                       f" client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;"
                       f" uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;"
                       f" server {{ listen 127.0.0.1:{port}; location / {{ root {files}; autoindex on; }} }} }}")
    return Server(command, folder, port, os.path.join(folder, "log"), files), name


# ---------------------------------------------------------------- pushing

def ask(host, method, path, body=None, headers=None, expected=(200,)):
    """One request; its answer's headers."""
    connection = http.client.HTTPConnection(host, timeout=300)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        said = answer.read()
    finally:
        connection.close()
    if answer.status not in expected:
        raise SystemExit(f"tools/bench: {method} {path}: {answer.status} {said[:300]!r}")
    return answer.headers


def put_blob(host, digest, size, body):
    started = ask(host, "POST", f"/v2/{REPOSITORY}/blobs/uploads/", headers={"Content-Length": "0"}, expected=(202,))
    place = started["Location"]
    place += ("&" if "?" in place else "?") + "digest=" + urllib.parse.quote(digest)
    headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
    ask(host, "PUT", place, body, headers, expected=(201,))


def push(host, model, tag):
    """The model as a ModelPack artifact of raw layers, one for each file, without an index."""
    layers = []
    names = ["config.json"] + [shard.name for shard in model.shards]
    digests = {shard.name: shard.digest for shard in model.shards}
    for name in names:
        path = os.path.join(model.folder, name)
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            digest = digests.get(name) or "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            put_blob(host, digest, size, file)
        kind = "weight" if name in digests else "weight.config"
        layers.append({"mediaType": LAYER.format(kind), "digest": digest, "size": size,
                       "annotations": {"org.cncf.model.filepath": name}})
    config = json.dumps({
        "descriptor": {"name": "bench", "family": "llama"},
        "config": {"architecture": "transformer", "format": "safetensors", "precision": "bfloat16"},
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
    }).encode()
    digest = "sha256:" + hashlib.sha256(config).hexdigest()
    put_blob(host, digest, len(config), config)
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": ARTIFACT,
                "config": {"mediaType": CONFIG, "digest": digest, "size": len(config)}, "layers": layers}
    headers = {"Content-Type": MANIFEST}
    ask(host, "PUT", f"/v2/{REPOSITORY}/manifests/{tag}", json.dumps(manifest).encode(), headers, expected=(201,))


# ---------------------------------------------------------------- a server of files, where there is no nginx

class Ranges(http.server.BaseHTTPRequestHandler):
    """A folder's files, whole or one range of them, and its listing."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        name = os.path.basename(urllib.parse.unquote(urllib.parse.urlsplit(self.path).path))
        if not name:
            return self.listing()
        try:
            file = open(os.path.join(self.server.folder, name), "rb")
        except OSError:
            return self.send_error(404)
        with file:
            size = os.fstat(file.fileno()).st_size
            wanted = self.range(size)
            if wanted is None:
                return self.send_error(416)
            start, stop = wanted
            self.send_response(206 if "Range" in self.headers else 200)
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.headed("application/octet-stream", stop - start)
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
        names = map(html.escape, sorted(os.listdir(self.server.folder)))
        lines = "".join(f'<a href="{name}">{name}</a>\n' for name in names)
        text = f"<html><head><title>Index of /</title></head><body><pre>\n{lines}</pre></body></html>\n".encode()
        self.send_response(200)
        self.headed("text/html", len(text))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text)

    def headed(self, kind, length):
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Accept-Ranges", "bytes")

    def log_message(self, *_):
        pass


def serve(folder, port):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Ranges)
    server.folder, server.daemon_threads = folder, True
    server.serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
