"""The rows of the table: what is measured, of which artifact, against what. Each measures one pair of the two, and gives figures.

Figures are numbers by name; report/figures.py says what each is. `ratio` and what ends with it is ours in units of the other.
"""
from .. import readers
from ..front import LIMIT
from . import cold, far, faults, large, llama, memory, warm


class Row:
    """A line of the table. `measure(bench)` gives the figures of one pair, and raises Missing where it cannot be had here."""

    def __init__(self, name, heading, artifact, against, measure):
        self.name, self.heading, self.artifact, self.against, self.measure = name, heading, artifact, against, measure


CURL = "`curl` to /dev/null"
USER = "`curl -o FILE`, then `openssl dgst -sha256 FILE`"
NATIVE = "native"

ROWS = [
    Row("reader", "the readers themselves", "-", "files in the page cache", warm.reader),
    Row("cold-packed-redirect", "cold read, 1 MiB reads, redirecting registry", "packed", CURL, cold.read("redirect", "packed")),
    Row("cold-packed-registry", "cold read, 1 MiB reads, docker-registry", "packed", CURL, cold.read("registry", "packed")),
    Row("cold-plain-redirect", "cold read, 1 MiB reads, redirecting registry", "plain", CURL, cold.read("redirect", "plain")),
    Row("cold-plain-registry", "cold read, 1 MiB reads, docker-registry", "plain", CURL, cold.read("registry", "plain")),
    Row("user-redirect", "cold read, 1 MiB reads, redirecting registry", "packed", USER, cold.verified("redirect", "packed")),
    Row("user-registry", "cold read, 1 MiB reads, docker-registry", "packed", USER, cold.verified("registry", "packed")),
    Row("mmap-redirect", "cold mmap touch in order, redirecting registry", "packed", CURL, cold.mapped("redirect", "packed")),
    Row("mmap-registry", "cold mmap touch in order, docker-registry", "packed", CURL, cold.mapped("registry", "packed")),
    Row("limited", f"cold read, 1 MiB reads, {LIMIT.upper()}iB/s a connection", "packed", "`curl -Z` of all shards to /dev/null",
        cold.limited("packed")),
    Row("direct", "O_DIRECT, 16 threads of 2 MiB preads, cold", "packed", "cold read", cold.direct("redirect", "packed")),
    Row("together", "8 processes mapping all shards at once, cold", "packed", "one process", cold.together("redirect", "packed")),
    Row("far-packed", "cold read, 1 Gbit/s and 20 ms", "packed", "line rate", far.in_order("packed")),
    Row("far-plain", "cold read, 1 Gbit/s and 20 ms", "plain", "line rate", far.in_order("plain")),
    Row("far-tensor", "one tensor mid-shard on that line, connections open", "packed", "a round trip, its bytes at line rate",
        far.tensor("packed")),
    Row("far-first", "mount command to the first tensor byte on that line", "packed", "5 round trips + 1 MiB",
        far.first_byte("packed")),
    Row("warm-packed", "complete file in the store, page cache warm", "packed", NATIVE, warm.complete("packed")),
    Row("warm-plain", "complete file in the store, page cache warm", "plain", NATIVE, warm.complete("plain")),
    Row("reopen-packed", "opened again in the same mount after a cold pass", "packed", NATIVE, warm.reopened("packed")),
    Row("reopen-plain", "opened again in the same mount after a cold pass", "plain", NATIVE, warm.reopened("plain")),
    Row("fault-packed", "4 KiB fault under MADV_RANDOM, chunk here, file incomplete", "packed", "-", faults.here("packed")),
    Row("fault-plain", "4 KiB fault under MADV_RANDOM, chunk here, file incomplete", "plain", "-", faults.here("plain")),
    Row("random-default", "200 random 4 KiB faults over a shard, default advice", "packed", "-",
        faults.cold("packed", faults.DEFAULT)),
    Row("random-advised", "200 random 4 KiB faults over a shard, MADV_RANDOM", "packed", "-", faults.cold("packed", faults.RANDOM)),
    Row("memory-1-packed", "memory, 1 reader", "packed", "-", memory.reading("packed", readers.in_order)),
    Row("memory-1-plain", "memory, 1 reader", "plain", "-", memory.reading("plain", readers.in_order)),
    Row("memory-32-packed", "memory, 32 readers", "packed", "-", memory.reading("packed", readers.shared_out)),
    Row("memory-32-plain", "memory, 32 readers", "plain", "-", memory.reading("plain", readers.shared_out)),
    Row("large", "mount of 1 TiB in 4,096 files, a layer each", "packed", "mount of 1 GiB in 4", large.mount("")),
    Row("large-tar", "mount of 1 TiB in 4,096 files, 256 in a layer of tar", "indexed", "mount of 1 GiB in 4", large.mount("-tar")),
    Row("llama", "llama.cpp load of SmolLM2 by mmap, 1 Gbit/s and 20 ms", "packed", "`curl -Z`, then local load", llama.load),
]
