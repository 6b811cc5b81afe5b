"""Single pages at random places, by mmap."""
import mmap

from .. import readers
from ..measure import MIB


def cold(tag, advice):
    """200 of them over a shard that nobody has read, under `advice`: what each took, and what was fetched for them."""
    def measure(bench):
        with bench.mounted(bench.redirect, tag) as mount:
            before = bench.redirect.settled()
            seconds = mount.read(lambda paths: readers.random_faults(paths[-1], advice))
            fetched = bench.redirect.settled() - before
        return {**milliseconds(seconds), "fetched": fetched, "chunks_per_fault": fetched / MIB / len(seconds)}
    return measure


def milliseconds(seconds):
    return {"p50_ms": readers.part(seconds, 50) * 1e3, "p99_ms": readers.part(seconds, 99) * 1e3, "max_ms": max(seconds) * 1e3,
            "s": sum(seconds)}


def here(tag):
    """Pages of chunks that are here, of a file that is not complete, under MADV_RANDOM."""
    def measure(bench):
        with bench.mounted(bench.redirect, tag, "--warm", "none") as mount:
            seconds = mount.read(lambda paths: readers.faults_here(paths[-1]))
        return {"p50_us": readers.part(seconds, 50) * 1e6, "p90_us": readers.part(seconds, 90) * 1e6,
                "p99_us": readers.part(seconds, 99) * 1e6}
    return measure


DEFAULT, RANDOM = mmap.MADV_NORMAL, mmap.MADV_RANDOM
