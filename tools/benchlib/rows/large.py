"""Mounting 1 TiB in 4,096 files that nobody has: a manifest and an index as `weightfs pack` would write them, over files of zeros.

Its bytes can be read, and are verified: every chunk is the same, so every section of the index is. It is served by `zeros.py`,
which counts what it sends. Beside it the same of 1 GiB in 4 files.
"""
import hashlib
import json
import os
import struct
import sys

from .. import processes
from ..measure import MIB
from ..origin import ARTIFACT, CONFIG, HERE, LAYER, MANIFEST, Server, free_port

FILE = 256 * MIB
FILES = {"small": 4, "large": 4096}
INDEX = "application/vnd.cncf.model.doc.v1.raw"
TAR = "application/vnd.cncf.model.weight.v1.tar"
PER_TAR = 256


def digest(text):
    """A digest of nothing that there is, for a layer of which chunks alone are verified."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class Layer:
    """Stored bytes that are files of zeros, one after the other: themselves, or as a tar archive has them."""

    def __init__(self, name, files, tar):
        self.files, self.tar, self.digest = files, tar, digest(f"weightfs/bench/{name}")
        step = FILE + 512 * tar
        self.extents = [number * step + 512 * tar for number in range(len(files))]
        self.size = len(files) * step + 1024 * tar

    def descriptor(self):
        if self.tar:
            return {"mediaType": TAR, "digest": self.digest, "size": self.size}
        return {"mediaType": LAYER.format("weight"), "digest": self.digest, "size": self.size,
                "annotations": {"org.cncf.model.filepath": self.files[0]}}


def layers_of(kind, tar):
    names = [f"model-{number + 1:05d}-of-{FILES[kind]:05d}.safetensors" for number in range(FILES[kind])]
    if not tar:
        return [Layer(f"{kind}/{name}", [name], False) for name in names]
    return [Layer(f"{kind}/{at}", names[at:at + PER_TAR], True) for at in range(0, len(names), PER_TAR)]


def index_of(layers, chunk):
    """The index of the layers, as docs/index-format.md draws it, and the length of its head."""
    names = [name.encode() for layer in layers for name in layer.files]
    text = b"".join(names)
    size = 64 + len(layers) * (160 + 64) + len(names) * (16 + 40) + len(text)
    head = b"weightfs" + struct.pack("<HBB4xQIIIII20x", 1, 1, 20, size, len(layers), len(names), len(names), len(layers), len(text))
    sections = [chunk * (FILE // MIB) * len(layer.files) for layer in layers]
    sums = {section: hashlib.sha256(section).digest() for section in set(sections)}
    parts, begins, at = [head], 0, size
    for layer in layers:
        parts.append(struct.pack("<QQIIBBB5x64s64s", layer.size, layer.size, len(layer.files), 1, 1, 0, 0,
                                 bytes.fromhex(layer.digest[7:]), b""))
    parts += [struct.pack("<QQ", start, FILE) for layer in layers for start in layer.extents]
    for number, layer in enumerate(layers):
        for extent, name in enumerate(layer.files):
            parts.append(struct.pack("<B3xIqIIIIII", 0, 0o644, 0, number, extent, begins, len(name), 0, 0))
            begins += len(name)
    for section in sections:
        parts.append(struct.pack("<H6xQQ8x32s", 1, at, len(section), sums[section]))
        at += len(section)
    return b"".join([*parts, text, *sections]), size


def artifact(folder, kind, tar, chunk):
    """Writes manifest, config and index into `folder`; what `zeros.py` is to serve of it."""
    layers = layers_of(kind, tar)
    tag = f"{kind}-tar" if tar else kind
    index, head = index_of(layers, chunk)
    small = {}

    def written(name, data):
        found = "sha256:" + hashlib.sha256(data).hexdigest()
        small[found] = os.path.join(folder, f"{tag}-{name}")
        with open(small[found], "wb") as file:
            file.write(data)
        return {"digest": found, "size": len(data)}
    config = written("config", json.dumps({"descriptor": {"name": "bench"}, "config": {"format": "safetensors"}, "modelfs": {
        "type": "layers", "diffIds": [layer.digest for layer in layers]}}).encode())
    pinned = {"org.cncf.model.filepath": ".weightfs/index", "dev.weightfs.index": "v1", "dev.weightfs.index.head.size": str(head),
              "dev.weightfs.index.head.digest": "sha256:" + hashlib.sha256(index[:head]).hexdigest()}
    descriptors = [layer.descriptor() for layer in layers] + [{"mediaType": INDEX, **written("index", index), "annotations": pinned}]
    manifest = written("manifest", json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": ARTIFACT,
                                               "config": {"mediaType": CONFIG, **config}, "layers": descriptors}).encode())
    return {"tag": tag, "manifest": manifest["digest"], "files": small, "zeros": {layer.digest: layer.size for layer in layers},
            "head": head, "manifest_size": manifest["size"]}


class Zeros(Server):
    """`zeros.py` with all four artifacts."""

    def __init__(self, folder, chunk):
        os.makedirs(folder)
        made = [artifact(folder, kind, tar, chunk) for kind in FILES for tar in (False, True)]
        port, config = free_port(), os.path.join(folder, "zeros.json")
        with open(config, "w") as file:
            json.dump({"port": port, "type": MANIFEST, "artifacts": made}, file)
        super().__init__([sys.executable, os.path.join(HERE, "zeros.py"), config], folder, [port], None)


def chunk_digest(bench):
    """The BLAKE3 of a chunk of zeros: the last bytes of the index of a folder that has one."""
    folder, out = os.path.join(bench.work, "zero"), os.path.join(bench.work, "zero-out")
    os.makedirs(folder)
    with open(os.path.join(folder, "zero.bin"), "wb") as file:
        file.write(bytes(MIB))
    processes.output([bench.weightfs, "pack", folder, f"oci:{out}:zero"], bench.limit, bench.environment(bench.work))
    blobs = [os.path.join(out, "blobs/sha256", name) for name in os.listdir(os.path.join(out, "blobs/sha256"))]
    for blob in blobs:
        with open(blob, "rb") as file:
            if file.read(8) == b"weightfs":
                file.seek(-32, os.SEEK_END)
                return file.read()
    raise OSError("weightfs pack wrote no index")


def mount(form):
    """Seconds to ready against 1 GiB, and the bytes sent: when it was ready, and later, before any read."""
    def measure(bench):
        if "zeros" not in bench.lines:
            chunk = chunk_digest(bench)
            bench.lines["zeros"] = bench.started(lambda: Zeros(os.path.join(bench.work, "zeros"), chunk))
        at, found = bench.lines["zeros"], {}
        for kind in FILES:
            name = layers_of(kind, form == "-tar")[0].files[0]
            before = at.settled()
            with bench.mounted(at, kind + form, name=name) as mounted:
                found[f"{kind}_ready_s"] = mounted.ready
                if kind == "large":
                    found["fetched_ready"] = at.sent() - before
                    found["fetched"] = at.settled() - before
                    found["peak"] = mounted.peak()
        return {**found, "ratio": found["large_ready_s"] / found["small_ready_s"]}
    return measure
