"""The registry behind a far line: 1 Gbit/s for all connections together, 20 ms a round trip."""
import json
import mmap
import struct
import time

from .. import readers
from ..measure import MIB, read
from ..origin import ONE_WAY, RATE
from .cold import nothing

TURN = 2 * ONE_WAY


def in_order(tag):
    """All of the model, with reads of 1 MiB, as a share of the line's rate; beside it curl's."""
    def measure(bench):
        done = bench.curl(bench.far, nothing(bench, bench.far))
        with bench.mounted(bench.far, tag) as mount:
            found = mount.timed(readers.in_order)
        return {**found, "base_mb_s": RATE / 1e6, "curl_mb_s": bench.model.size / 1e6 / done["s"], "ratio": found["mb_s"] * 1e6 / RATE}
    return measure


def tensors(path):
    """Where the tensors of a safetensors file lie: (start, length) of each, in the order of the file."""
    with open(path, "rb", buffering=0) as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    offsets = sorted(tensor["data_offsets"] for tensor in header.values())
    return [(8 + length + start, stop - start) for start, stop in offsets]


def middle(path):
    found = tensors(path)
    return found[len(found) // 2]


def tensor(tag):
    """A tensor in the middle of the first shard of a mount that has answered reads before, so that its connections are open.

    The floor is a round trip and the tensor's bytes at the line's rate.
    """
    def measure(bench):
        start, length = middle(bench.model.shards[0].path)
        with bench.mounted(bench.far, tag) as mount:
            mount.read(lambda paths: (read(paths[-1], *middle(paths[-1])), middle(paths[0])))
            before = bench.far.settled()
            took = mount.read(lambda paths: readers.timed(lambda: read(paths[0], start, length)))["s"]
            fetched = bench.far.settled() - before
        floor = TURN + length / RATE
        return {"s": took, "base_s": floor, "ratio": took / floor, "fetched": fetched, "curl_s": curl_range(bench, start, length)}
    return measure


def curl_range(bench, start, length):
    """Seconds of curl for the same range: what the line gives to a fresh connection, which costs a round trip more."""
    words = [bench.urls(bench.far)[0], "-o", "/dev/null", "-r", f"{start}-{start + length - 1}"]
    return bench.curl(bench.far, lambda _: words)["s"]


def first_byte(tag):
    """From the mount command to the first byte of the first tensor, by mmap; and to that of one in mid-shard, from the start again.

    The floor is five round trips and 1 MiB: connecting, manifest, index, digests of chunks, a chunk.
    """
    def measure(bench):
        floor = 5 * TURN + MIB / RATE
        with bench.mounted(bench.far, tag, then=lambda path: faulted(path, 0)) as mount:
            found = {"s": mount.done, "ready_s": mount.ready, "base_s": floor, "ratio": mount.done / floor}
        with bench.mounted(bench.far, tag, then=lambda path: faulted(path, -1)) as mount:
            return {**found, "mid_s": mount.done}
    return measure


def faulted(path, which):
    """When the first byte of a tensor had come: the first one for 0, else one in the middle."""
    found = tensors(path)
    start = found[which if which == 0 else len(found) // 2][0]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped[start]
    return time.monotonic()
