"""One model as a layer of every form that tools write: tar by GNU tar, gzip by gzip and pigz, zstd by zstd, and the three
forms that bring a table of their parts, put together here as their writers do.
"""
import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import tarfile

MIB = 1 << 20
FRAME = 4 * MIB
RAW = "application/vnd.cncf.model.weight.v1.raw"
PACKED = "application/vnd.cncf.modelpack.model.layer.v1.tar"


class Layer:
    """A blob in a file, and how a manifest describes it."""

    def __init__(self, path, media_type, annotations=None):
        self.path, self.media_type, self.annotations = path, media_type, annotations or {}


class Form:
    """A way to write a model. `write(folder, files, out)` gives its layers; `needs` are the commands it runs."""

    def __init__(self, name, write, *needs):
        self.name, self.write, self.needs = name, write, needs

    def missing(self):
        return [command for command in self.needs if not shutil.which(command)]


def raw(folder, files, out):
    return [Layer(os.path.join(folder, name), RAW, {"org.cncf.model.filepath": name}) for name in files]


def archived(folder, files, out):
    """One archive of all files, as GNU tar writes it, padded to 10 KiB."""
    path = os.path.join(out, "layer.tar")
    subprocess.run(["tar", "--format=gnu", "--owner=0", "--group=0", "--mtime=@1735689600", "-cf", path, "-C", folder, *files],
                   check=True)
    return path


def tar(folder, files, out):
    return [Layer(archived(folder, files, out), PACKED)]


def filtered(suffix, *command):
    """The archive through a command that compresses it."""
    def write(folder, files, out):
        archive, path = archived(folder, files, out), os.path.join(out, "layer")
        with open(archive, "rb") as source, open(path, "wb") as target:
            subprocess.run(command, stdin=source, stdout=target, check=True)
        os.remove(archive)
        return [Layer(path, PACKED + suffix)]
    return write


def zstd(data):
    return subprocess.run(["zstd", "-q", "-1", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


def skippable(data):
    return struct.pack("<II", 0x184D2A50, len(data)) + data


def seekable(folder, files, out):
    """Frames of 4 MiB and the seek table of zstd's seekable format 0.1.0."""
    archive, path = archived(folder, files, out), os.path.join(out, "layer")
    rows = b""
    with open(archive, "rb") as source, open(path, "wb") as target:
        while data := source.read(FRAME):
            frame = zstd(data)
            rows += struct.pack("<II", len(frame), len(data))
            target.write(frame)
        table = rows + struct.pack("<IBI", len(rows) // 8, 0, 0x8F92EAB1)
        target.write(struct.pack("<II", 0x184D2A5E, len(table)) + table)
    os.remove(archive)
    return [Layer(path, PACKED + "+zstd")]


class Parts:
    """Writes an archive part by part, and keeps the rows of its table. `compress` makes a part of its own of some bytes."""

    def __init__(self, path, compress):
        self.file, self.compress, self.rows = open(path, "wb"), compress, []

    def put(self, data):
        """Writes bytes as one part; where it begins and ends."""
        start = self.file.tell()
        self.file.write(self.compress(data))
        return start, self.file.tell()

    def add(self, folder, name):
        """Writes a file: its header, then its content in parts of 4 MiB."""
        path = os.path.join(folder, name)
        size = os.path.getsize(path)
        member = tarfile.TarInfo(name)
        member.size, member.mtime = size, 1735689600
        self.put(member.tobuf(tarfile.GNU_FORMAT))
        whole, at = hashlib.sha256(), 0
        entry = {"type": "reg", "name": name, "mode": 0o644, "size": size, "modtime": "2025-01-01T00:00:00Z"}
        self.rows.append(entry)
        with open(path, "rb") as source:
            while data := source.read(FRAME):
                whole.update(data)
                start, end = self.put(data)
                row = entry if at == 0 else {"type": "chunk", "name": name}
                row.update(offset=start, chunkSize=len(data), chunkDigest="sha256:" + hashlib.sha256(data).hexdigest())
                if at:
                    row["chunkOffset"] = at
                    self.rows.append(row)
                entry["endOffset"] = end
                at += len(data)
        if size % 512:
            self.put(bytes(-size % 512))
        entry["digest"] = "sha256:" + whole.hexdigest()


def member(data, extra=None):
    """A gzip member of its own (RFC 1952); with `extra`, one without content that carries the field."""
    if extra is None:
        return gzip.compress(data, 1, mtime=0)
    field = struct.pack("<H", len(extra)) + extra
    return b"\x1f\x8b\x08\x04" + bytes(4) + b"\0\xff" + field + b"\x01\0\0\xff\xff" + bytes(8)


def estargz(folder, files, out):
    """A gzip member for each part, then the table as an archive member, then the footer."""
    path = os.path.join(out, "layer")
    parts = Parts(path, member)
    for name in files:
        parts.add(folder, name)
    for row in parts.rows:
        row.pop("endOffset", None)
    table = json.dumps({"version": 1, "entries": parts.rows}).encode()
    info = tarfile.TarInfo("stargz.index.json")
    info.size = len(table)
    start, _ = parts.put(info.tobuf(tarfile.GNU_FORMAT) + table + bytes(-len(table) % 512) + bytes(1024))
    parts.file.write(member(b"", b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % start))
    parts.file.close()
    digest = "sha256:" + hashlib.sha256(table).hexdigest()
    return [Layer(path, PACKED + "+gzip", {"containerd.io/snapshot/stargz/toc.digest": digest})]


def chunked(folder, files, out):
    """A zstd frame for each part, then the table and a footer in frames without content, as containers/storage writes them."""
    path = os.path.join(out, "layer")
    parts = Parts(path, zstd)
    for name in files:
        parts.add(folder, name)
    parts.put(bytes(1024))
    table = json.dumps({"version": 1, "entries": parts.rows}).encode()
    stored = zstd(table)
    start = parts.file.tell() + 8
    parts.file.write(skippable(stored))
    split = parts.file.tell() + 8
    parts.file.write(skippable(b""))
    numbers = start, len(stored), len(table), 1, split, 0, 0
    parts.file.write(skippable(struct.pack("<7Q", *numbers) + b"GNUlInUx"))
    parts.file.close()
    return [Layer(path, PACKED + "+zstd", {
        "io.github.containers.zstd-chunked.manifest-position": ":".join(map(str, numbers[:4])),
        "io.github.containers.zstd-chunked.manifest-checksum": "sha256:" + hashlib.sha256(stored).hexdigest()})]


FORMS = [
    Form("raw", raw),
    Form("tar", tar, "tar"),
    Form("tar+gzip, one member", filtered("+gzip", "gzip", "-1n"), "tar", "gzip"),
    Form("tar+gzip, pigz", filtered("+gzip", "pigz", "-1n"), "tar", "pigz"),
    Form("tar+gzip, pigz -i", filtered("+gzip", "pigz", "-1ni"), "tar", "pigz"),
    Form("tar+zstd, one frame", filtered("+zstd", "zstd", "-q", "-1", "-c"), "tar", "zstd"),
    Form("tar+zstd, seekable", seekable, "tar", "zstd"),
    Form("zstd:chunked", chunked, "zstd"),
    Form("eStargz", estargz),
]
