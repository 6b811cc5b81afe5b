"""What is measured through one mount, from the reader's side.

Runs in a process of its own (see `limited`): a mount whose server hangs takes only that process with it.
"""
import hashlib
import json
import mmap
import multiprocessing
import os
import random
import struct
import threading
import time

from .model import MIB

FAULTS = 200


class Late(Exception):
    """A step took longer than it may."""


def drop_caches():
    """Drops the page cache; whether it could."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3")
        return True
    except OSError:
        return False


def run_together(works):
    """Runs each of `works` in a thread; the first error of any."""
    failed = []

    def one(work):
        try:
            work()
        except (OSError, ValueError) as error:
            failed.append(error)
    threads = [threading.Thread(target=one, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def limited(seconds, work, stop):
    """The result of `work()`, run in a forked process.

    After `seconds` the process is killed, `stop()` is called to free it from a mount that does not answer, and Late raised.
    """
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=answer, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise Late(f"not done after {seconds} s")
        ok, result = ours.recv()
    except EOFError:
        ok, result = False, "the reader died (a page fault that failed ends it)"
    finally:
        process.kill()
        process.join(1)
        if process.is_alive():
            stop()
            process.join(10)
    if not ok:
        raise OSError(result)
    return result


def answer(pipe, work):
    import signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        pipe.send((True, work()))
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))


class Reader:
    """Reads the shards in `folder`, counting from `start` (time.monotonic), the moment of the mount command."""

    def __init__(self, folder, shards, server, start):
        self.paths = [os.path.join(folder, shard.name) for shard in shards]
        self.size = sum(shard.size for shard in shards)
        self.server, self.start = server, start
        self.cold = True

    def since(self):
        return time.monotonic() - self.start

    def path(self, number):
        return self.paths[min(number, len(self.paths) - 1)]

    def pieces(self):
        """The first session: a bit of everything. Each cold step has a shard of its own, where there are four."""
        found = {}
        with open(self.path(0), "rb", buffering=0) as file:
            first = file.read(8)
            found["first_byte_s"] = self.since()
            header = file.read(struct.unpack("<Q", first)[0])
            tensors = json.loads(header)
            found["header_s"] = self.since()
        tensors.pop("__metadata__")
        offsets = sorted(tensor["data_offsets"] for tensor in tensors.values())
        start, stop = offsets[len(offsets) // 2]
        before, began = self.server.sent(), time.monotonic()
        read(self.path(0), 8 + len(header) + start, stop - start)
        found["tensor_s"] = time.monotonic() - began
        found["tensor_fetched"] = self.server.settled() - before
        found["seq_mb_s"] = rate(whole, self.path(1))
        self.server.settled()
        found["mmap_mb_s"] = rate(touch, self.path(2))
        before = self.server.settled()
        found.update(faults(self.path(3)))
        found["rand_fetched"] = self.server.settled() - before
        found["warm_mb_s"] = rate(whole, self.path(1))
        if drop_caches():
            self.server.warm()
            found["reread_mb_s"] = rate(whole, self.path(1))
        return found

    def all(self):
        """The second session: every shard in order, from the mount command on."""
        for path in self.paths:
            whole(path)
        return {"all_mb_s": self.size / 1e6 / self.since()}

    def together(self):
        """The third session: every shard at once, a thread for each, from the mount command on."""
        run_together([lambda path=path: whole(path) for path in self.paths])
        return {"together_mb_s": self.size / 1e6 / self.since()}

    def digests(self):
        """The digest of each shard as it is read here."""
        found = []
        for path in self.paths:
            with open(path, "rb", buffering=0) as file:
                found.append("sha256:" + hashlib.file_digest(file, "sha256").hexdigest())
        return found


def rate(work, path):
    began = time.monotonic()
    size = work(path)
    return size / 1e6 / (time.monotonic() - began)


def whole(path):
    size = os.path.getsize(path)
    read(path, 0, size)
    return size


def read(path, start, size):
    """Reads of 1 MiB."""
    buffer = memoryview(bytearray(MIB))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while size:
            got = file.readinto(buffer[:min(MIB, size)])
            if not got:
                raise OSError(f"{path} ends {size} bytes early")
            size -= got


def touch(path):
    """One byte of each page, in order, by mmap."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for at in range(0, len(mapped), MIB):
            mapped[at:at + MIB:4096]  # the slice is taken in C, so that the loop costs little
        return len(mapped)


def faults(path):
    """Page faults at random places, always the same ones, each timed."""
    times = []
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = range(len(mapped) // 4096)
        for page in random.Random(20260101).sample(pages, min(FAULTS, len(pages))):
            began = time.perf_counter()
            mapped[page * 4096]
            times.append((time.perf_counter() - began) * 1e3)
    times.sort()
    return {"rand_p50_ms": times[len(times) // 2], "rand_p99_ms": times[len(times) * 99 // 100 - 1], "rand_max_ms": times[-1]}
