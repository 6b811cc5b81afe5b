"""Where everything is fetched from: a registry, another that redirects to nginx, a web server, a far line to the first.

All are on the loopback, over files of a folder of their own, and are ended by their process.
"""
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from contextlib import contextmanager

from . import processes

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
LAYER = "application/vnd.cncf.model.{}.v1.raw"
REPOSITORY = "bench/p"
# The far line: 1 Gbit/s for all connections together, 10 ms each way.
RATE, ONE_WAY = 125_000_000, 0.010
HERE = os.path.dirname(os.path.abspath(__file__))


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
    """A process that answers over HTTP on `ports`, how much it has sent, and what it costs.

    `files` is the folder it serves; None where that lies in memory, and is never cold.
    """

    def __init__(self, command, folder, ports, files):
        self.host, self.files = f"127.0.0.1:{ports[0]}", files
        log = os.path.join(folder, "log")
        with open(log, "a") as out:
            self.process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"}, start_new_session=True)
        until = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < until:
            try:
                for port in ports:
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
        return processes.settled(self.sent, 3, 0.2)

    def cpu(self):
        """CPU seconds so far."""
        return processes.cpu([self.process.pid])

    def warm(self):
        """Reads all files it serves, so that what it sends comes from memory."""
        for folder, _, names in os.walk(self.files or ""):
            for name in names:
                with open(os.path.join(folder, name), "rb", buffering=0) as file:
                    while file.read(4 << 20):
                        pass

    def end(self):
        end(self.process)


class Face:
    """One of several ports of a server."""

    def __init__(self, server, port):
        self.host = f"127.0.0.1:{port}"
        self.sent, self.settled, self.cpu, self.warm = server.sent, server.settled, server.cpu, server.warm


class Far:
    """A registry behind a far line. What the line has written is what has been sent: requests are small beside it."""

    def __init__(self, folder, registry):
        os.makedirs(folder)
        port, upstream = free_port(), registry.host.rpartition(":")[2]
        words = [str(port), upstream, str(RATE), str(ONE_WAY)]
        self.line = Server([sys.executable, os.path.join(HERE, "link.py"), *words], folder, [port], None)
        self.host, self.registry = self.line.host, registry
        self.sent, self.settled, self.end = self.line.sent, self.line.settled, self.line.end

    def cpu(self):
        """CPU seconds of the registry; the line's are nobody's."""
        return self.registry.cpu()

    def warm(self):
        self.registry.warm()


def folder_for(work, size):
    """A folder for what is served: in memory where there is room for it, else in `work`; and whether it is in memory."""
    try:
        room = os.statvfs("/dev/shm")
        free = processes.kibibytes("/proc/meminfo", "MemAvailable:")
        if room.f_bavail * room.f_frsize > 1.5 * size and free > 4 * size + (1 << 30):
            return tempfile.mkdtemp(prefix="weightfs-bench-", dir="/dev/shm"), True
    except OSError:
        pass
    return tempfile.mkdtemp(prefix="origin-", dir=work), False


def registry(folder, in_memory=False):
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
    command = ["docker-registry", "serve", "config.yml"]
    return Server(command, folder, [port], None if in_memory else storage)


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
