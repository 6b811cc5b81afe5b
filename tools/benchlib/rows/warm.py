"""Reading what is here already: a complete file of the store, and a file that has become complete in this very mount."""
import os
import statistics

from .. import readers
from ..measure import drop_caches
from ..session import Missing, Session

WAYS = {"read": readers.in_order, "mmap": readers.touched, "copy": readers.copied}
TIMES = 9  # of which the median counts: a gigabyte out of memory takes some ten milliseconds


def median_of(seconds):
    return statistics.median([seconds() for _ in range(TIMES)])


def medians_of(*ways):
    """Of each, in turn after one another."""
    turns = [[seconds() for seconds in ways] for _ in range(TIMES)]
    return [statistics.median(times) for times in zip(*turns)]


def images(bench, session):
    """The files of the store that hold the shards, known by their sizes."""
    sizes = {os.path.getsize(shard.path) for shard in bench.model.shards}
    kept = (os.path.join(folder, name) for folder, _, names in os.walk(session.cache) for name in names)
    found = sorted(path for path in kept if os.path.getsize(path) in sizes)
    if len(found) != len(bench.model.shards):
        raise OSError(f"the store holds {len(found)} files of a shard's size, not {len(bench.model.shards)}: {session.cache}")
    return found


def complete(tag):
    """A mount over a store that has every file complete and proved, against the files themselves; both read once before.

    Beside it the store's own files, opened past the mount: what these are slower by is how they lie in memory, and no work of the mount.
    """
    def measure(bench):
        size, found = bench.model.size / 1e6, {}
        with Session(bench) as session:
            session.run([bench.weightfs, "pull", bench.reference(bench.redirect, tag)])
            bench.cold()
            with bench.mounted(bench.redirect, tag, session=session, cold=False) as mount:
                ours = lambda work: mount.read(lambda paths: readers.timed(lambda: work(paths)))["s"]
                kept = images(bench, session)
                for read in (bench.native, ours):
                    read(readers.in_order)
                for name, work in WAYS.items():
                    native, own, past = medians_of(lambda: bench.native(work), lambda: ours(work), lambda: bench.native(work, kept))
                    found.update({f"{name}_mb_s": size / own, f"{name}_base_mb_s": size / native, f"{name}_ratio": native / own,
                                  f"{name}_past_ratio": past / own})
        return found
    return measure


def reopened(tag):
    """A mount whose files are read, and opened and read twice more, against the files themselves, cold and warm."""
    def measure(bench):
        if not drop_caches():
            raise Missing("only root can drop the page cache")
        size, cold = bench.model.size / 1e6, bench.native(readers.in_order)
        with bench.mounted(bench.redirect, tag) as mount:
            timed = lambda: mount.read(lambda paths: readers.timed(lambda: readers.in_order(paths)))["s"]
            timed()
            mount.idle()  # what was kept has been proved, and handed to the kernel where that can be
            first = timed()
            bench.native(readers.in_order)
            warm, second = medians_of(lambda: bench.native(readers.in_order), timed)
        return {"first_mb_s": size / first, "first_base_mb_s": size / cold, "first_ratio": cold / first,
                "second_mb_s": size / second, "second_base_mb_s": size / warm, "second_ratio": warm / second}
    return measure


def reader(bench):
    """How fast the readers are where nothing else is to be waited for: the files themselves, warm."""
    size, found = bench.model.size / 1e6, {}
    bench.native(readers.in_order)
    for name, work in {**WAYS, "together": readers.by_processes}.items():
        found[f"{name}_mb_s"] = size / median_of(lambda: bench.native(work))
    found["direct_mb_s"] = size / bench.native(readers.direct)
    return found
