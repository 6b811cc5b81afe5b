"""The figures of rows put together over pairs, and what each is called and measured in."""
import statistics
from collections import Counter

# What is said of every row that has it, in columns of its own.
CPU = ("cpu_weightfs", "cpu_server", "cpu_reader", "cpu_all")
COLUMNS = (*CPU, "mb_s", "base_mb_s", "peak")
NAMES = {
    "ratio_slow": "ratio, curl in its slow mode", "ratio_fast": "ratio, curl in its fast mode", "wall_ratio": "wall time",
    "fetched_ratio": "bytes fetched", "fetched": "bytes fetched in all", "fetched_ready": "bytes fetched when it answers",
    "chunks_per_fault": "bytes fetched a fault", "anonymous": "anonymous resident memory", "peak": "peak resident memory",
    "cpu_weightfs": "CPU of weightfs", "base_cpu_server": "CPU of the server for curl", "base_cpu_reader": "CPU of curl",
    "read_ratio": "read", "mmap_ratio": "mmap touch", "copy_ratio": "mmap copy-out",
    "read_past_ratio": "read, of the store's own file", "mmap_past_ratio": "mmap touch, of the store's own file",
    "copy_past_ratio": "mmap copy-out, of the store's own file",
    "first_ratio": "first reopen, native cold", "second_ratio": "second reopen, native warm",
    "p50_us": "p50", "p90_us": "p90", "p99_us": "p99", "p50_ms": "p50", "p99_ms": "p99", "max_ms": "slowest",
    "s": "time", "base_s": "the other's time", "ready_s": "mount answers", "mid_s": "to a tensor in mid-shard",
    "curl_s": "curl, a fresh connection", "curl_mb_s": "curl over the line", "load_s": "loading alone",
    "base_load_s": "loading a local file", "download_s": "curl -o", "digest_s": "openssl", "small_ready_s": "1 GiB answers",
    "large_ready_s": "1 TiB answers", "read_mb_s": "read", "mmap_mb_s": "mmap touch", "copy_mb_s": "mmap copy-out",
    "together_mb_s": "8 processes, mmap touch", "direct_mb_s": "O_DIRECT, cold", "read_base_mb_s": "native read",
    "mmap_base_mb_s": "native mmap touch", "copy_base_mb_s": "native mmap copy-out", "first_mb_s": "first reopen",
    "first_base_mb_s": "native cold", "second_mb_s": "second reopen", "second_base_mb_s": "native warm",
}
# How a figure's name ends or begins, its unit, the divisor for the unit. The first that fits.
UNITS = [("mb_s", "MB/s", 1), ("_us", "µs", 1), ("_ms", "ms", 1), ("cpu_", "s/GB", 1), ("base_cpu_", "s/GB", 1), ("ratio", "x", 1),
         ("_ratio", "x", 1), ("fetched", "MiB", 1 << 20), ("anonymous", "MiB", 1 << 20), ("peak", "MiB", 1 << 20),
         ("chunks_per_fault", "MiB", 1), ("_s", "s", 1), ("s", "s", 1)]


def unit(figure):
    """The unit of a figure, and what it is divided by for that."""
    return next(((name, divisor) for part, name, divisor in UNITS if figure.endswith(part) or figure.startswith(part)), ("", 1))


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarize(row):
    """Adds to a row its `figures`, median and range of each over pairs, and notes of what is no number."""
    kept = {}
    for pair in filter(None, row["pairs"]):
        for name, value in pair.items():
            kept.setdefault(name, []).append(value)
    row["figures"] = {name: spread(values) for name, values in kept.items() if not isinstance(values[0], str)}
    for name, values in kept.items():
        if isinstance(values[0], str):
            counted = ", ".join(f"{value} {times}" for value, times in sorted(Counter(values).items()))
            row["notes"].append(f"{name.replace('_', ' ')}: {counted} of {len(values)}")


def short(value):
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def said(figure, found):
    """A figure as people read it: median, range, unit."""
    name, divisor = unit(figure)
    median, least, most = (short(found[key] / divisor) for key in ("median", "min", "max"))
    between = "" if least == most else f" [{least}-{most}]"
    return f"{median}{between}{'' if name == 'x' else ' '}{name}" if name != "x" else f"{median}x{between}"


def heading(figure):
    return NAMES.get(figure, figure.replace("_", " "))
