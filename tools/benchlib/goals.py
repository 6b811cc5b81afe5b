"""What each row is to reach. One table: the row, the figure of it, the bound, and what else must hold for it to be judged."""
import operator

from . import figures

MIB = 1 << 20
# Bounds in bytes and milliseconds are of this model: shards of at least so much.
FULL = 256 * MIB


class Goal:
    """`figure` of `row` is to be at least, or at most, `bound`."""

    def __init__(self, row, figure, relation, bound, text=None):
        self.row, self.figure, self.relation, self.bound = row, figure, relation, bound
        self.holds = {"≥": operator.ge, "≤": operator.le}[relation]
        unit = figures.unit(figure)[0]
        self.text = text or f"{relation} " + (f"{bound:.2f}x" if unit == "x" else f"{bound:g} {unit}")

    def reached(self, value):
        return self.holds(value, self.bound)


def least(row, figure, bound, text=None):
    return Goal(row, figure, "≥", bound, text)


def most(row, figure, bound, text=None):
    return Goal(row, figure, "≤", bound, text)


def each(rows, goal, *rest):
    return [goal(row, *rest) for row in rows]


GOALS = [
    least("cold-packed-redirect", "ratio", 0.90),
    least("cold-packed-registry", "ratio_slow", 0.95),
    least("cold-packed-registry", "ratio_fast", 0.55),
    least("cold-plain-redirect", "ratio", 0.55),
    least("user-redirect", "ratio", 3),
    least("user-registry", "ratio", 1.5),
    least("mmap-redirect", "ratio", 0.90),
    *each(("far-packed", "far-plain"), least, "ratio", 0.97),
    most("far-tensor", "ratio", 1.2),
    most("far-first", "ratio", 1.3),
    *[least(row, f"{way}_ratio", 0.95) for row in ("warm-packed", "warm-plain") for way in ("read", "mmap", "copy")],
    *[least(row, f"{turn}_ratio", 0.90) for row in ("reopen-packed", "reopen-plain") for turn in ("first", "second")],
    *each(("fault-packed", "fault-plain"), most, "p50_us", 25),
    most("random-default", "fetched", 150 * MIB, "≤ 150 MiB"),
    most("random-advised", "fetched", 205 * MIB, "≤ 205 MiB"),
    # Headers and digests of chunks are fetched, too: 2.5 % of 200 chunks, as the bytes above allow.
    most("random-advised", "chunks_per_fault", 1.025, "≤ 1 MiB"),
    # One in a hundred for what differs between two runs of the same: heads of answers, a request more.
    most("together", "fetched_ratio", 1.01, "≤ 1.0"),
    most("together", "wall_ratio", 1.2),
    least("direct", "ratio", 0.9),
    most("llama", "ratio", 1.0),
    most("cold-packed-redirect", "cpu_weightfs", 0.60),
    most("cold-plain-redirect", "cpu_weightfs", 1.15),
    *each(("memory-1-packed", "memory-1-plain"), most, "anonymous", 80 * MIB, "≤ 80 MiB"),
    *each(("memory-32-packed", "memory-32-plain"), most, "anonymous", 128 * MIB, "≤ 128 MiB"),
    *each(("large", "large-tar"), most, "ratio", 2),
    *each(("large", "large-tar"), most, "fetched_ready", MIB, "≤ 1 MiB"),
]


def of(row):
    """The goals of a row, by its name."""
    return [goal for goal in GOALS if goal.row == row]


def judged(found, shard_bytes):
    """`found` rows with their goals: the bound, the median, whether it was reached; None where the model is too small to say."""
    for name, row in found.items():
        row["goals"] = [{"figure": goal.figure, "goal": goal.text, "bound": goal.bound, "relation": goal.relation,
                         "reached": goal.reached(row["figures"][goal.figure]["median"]) if shard_bytes >= FULL else None}
                        for goal in of(name) if goal.figure in row["figures"]]
    return found
