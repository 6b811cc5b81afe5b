"""The ways in which rows read: each takes paths, and gives how many bytes it has read, or what it has found.

All are cheap beside what they measure: pages are touched by slices that C takes, reads go into one buffer. `reader` among the
rows says how fast each of them is where the bytes lie in the page cache already.
"""
import ctypes
import mmap
import os
import random
import resource
import signal
import threading
import time

from .measure import FAULTS, MIB, read, touch, whole

PIECE = 2 * MIB
LIBC = ctypes.CDLL(None, use_errno=True)


def timed(work):
    """Seconds, CPU seconds of the reader and of what it started, and what `work()` gave."""
    spent = lambda: sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    before, began = spent(), time.monotonic()
    found = work()
    took = time.monotonic() - began
    return {"s": took, "cpu": spent() - before, "found": found}


def in_order(paths):
    """Every file with reads of 1 MiB."""
    return sum(whole(path) for path in paths)


def touched(paths):
    """One byte of each page of every file, by mmap, in order."""
    return sum(touch(path) for path in paths)


def copied(paths):
    """Every file copied out of a mapping, 1 MiB at a time."""
    buffer, size = memoryview(bytearray(MIB)), 0
    for path in paths:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
            for at in range(0, len(view), MIB):
                piece = min(MIB, len(view) - at)
                buffer[:piece] = view[at:at + piece]
            size += len(view)
    return size


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


def direct(paths, threads=16):
    """Every file with O_DIRECT, by threads that take pieces of 2 MiB in order."""
    files = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths]
    sizes = [os.fstat(file).st_size for file in files]
    pieces = iter([(file, at, min(PIECE, size - at)) for file, size in zip(files, sizes) for at in range(0, size, PIECE)])
    lock = threading.Lock()

    def one():
        with mmap.mmap(-1, PIECE) as room, memoryview(room) as buffer:  # page for page, as O_DIRECT wants it
            while True:
                with lock:
                    piece = next(pieces, None)
                if piece is None:
                    return
                fill(*piece, buffer)
    try:
        run_together([one] * threads)
    finally:
        for file in files:
            os.close(file)
    return sum(sizes)


def fill(file, at, size, buffer):
    while size:
        with buffer[:size] as part:
            got = os.preadv(file, [part], at)
        if not got:
            raise OSError(f"the file ends {size} bytes early")
        at, size = at + got, size - got


def shared_out(paths, readers=32):
    """Every file once, with reads of 1 MiB, by `readers` threads that have a stretch of the whole each."""
    sizes = [os.path.getsize(path) for path in paths]
    total = sum(sizes)
    bounds = [total * number // readers // 4096 * 4096 for number in range(readers)] + [total]
    run_together([lambda start=start, stop=stop: stretch(paths, sizes, start, stop) for start, stop in zip(bounds, bounds[1:])])
    return total


def stretch(paths, sizes, start, stop):
    """Reads from `start` to `stop`, counted over all files."""
    at = 0
    for path, size in zip(paths, sizes):
        first, last = max(start, at), min(stop, at + size)
        if first < last:
            read(path, first - at, last - first)
        at += size


def by_processes(paths, processes=8):
    """Every file mapped and touched in order by each of so many processes at once; the bytes of one of them."""
    children = []
    for _ in range(processes):
        child = os.fork()
        if not child:
            LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: none outlives the reader
            try:
                touched(paths)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        raise OSError("one of the processes failed")
    return sum(os.path.getsize(path) for path in paths)


def random_faults(path, advice):
    """Single pages at random places, always the same, by mmap under `advice`; seconds of each."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(advice)
        pages = range(len(mapped) // 4096)
        return [fault(mapped, page) for page in random.Random(20260101).sample(pages, min(FAULTS, len(pages)))]


def fault(mapped, page):
    began = time.perf_counter()
    mapped[page * 4096]
    return time.perf_counter() - began


def faults_here(path, chunks=16, faults=400):
    """Single pages of chunks of which a page was fetched before, so that all of each is here, under MADV_RANDOM: seconds of each.

    The chunks are spread over the file, which so stays incomplete, and are fewer than a mount holds in memory.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_RANDOM)
        count = len(mapped) // MIB
        chunks = max(1, min(chunks, count // 2))
        chosen = [count * number // chunks for number in range(chunks)]
        for chunk in chosen:
            mapped[chunk * MIB]
        time.sleep(0.5)  # what else was asked for meanwhile has come
        pages = [chunk * (MIB // 4096) + page for chunk in chosen for page in range(1, MIB // 4096)]
        return [fault(mapped, page) for page in random.Random(20260102).sample(pages, min(faults, len(pages)))]


def part(values, of_hundred):
    """The value below which so many of a hundred lie."""
    ordered = sorted(values)
    return ordered[max(0, len(ordered) * of_hundred // 100 - 1)]
