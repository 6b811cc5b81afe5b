"""The figures of all rounds put together, and shown."""
import statistics

# key, heading, unit, divisor for the unit, for whom
ROWS = [
    ("ready_s", "mount command to answer", "s", 1, "mount"),
    ("first_byte_s", "... to first byte", "s", 1, "mount"),
    ("header_s", "... to header read", "s", 1, "mount"),
    ("tensor_s", "one tensor mid-shard", "s", 1, "mount"),
    ("tensor_fetched", "... bytes fetched", "MB", 1e6, "mount"),
    ("seq_mb_s", "a shard, 1 MiB reads", "MB/s", 1, "mount"),
    ("mmap_mb_s", "a shard, mapped", "MB/s", 1, "mount"),
    ("rand_p50_ms", "200 random faults, p50", "ms", 1, "mount"),
    ("rand_p99_ms", "... p99", "ms", 1, "mount"),
    ("rand_max_ms", "... slowest", "ms", 1, "mount"),
    ("rand_fetched", "... bytes fetched", "MB", 1e6, "mount"),
    ("warm_mb_s", "a shard again", "MB/s", 1, "mount"),
    ("reread_mb_s", "... caches dropped", "MB/s", 1, "mount"),
    ("all_mb_s", "all shards in order, from the command", "MB/s", 1, "mount"),
    ("all_fetched", "... bytes fetched", "MB", 1e6, "mount"),
    ("cpu_s", "... CPU of the server", "s", 1, "mount"),
    ("together_mb_s", "all shards at once, from the command", "MB/s", 1, "mount"),
    ("peak_rss", "peak resident memory", "MB", 1e6, "mount"),
    ("total_s", "download", "s", 1, "download"),
    ("total_mb_s", "... rate", "MB/s", 1, "download"),
]
YARDSTICK = "curl-null"


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarize(contenders):
    """Adds to each contender its `rows`: median, min and max over rounds, and of rates the ratio to the yardstick's."""
    rates = [found.get("total_mb_s") for found in contenders.get(YARDSTICK, {}).get("rounds", [])]
    for contender in contenders.values():
        contender["rows"] = {}
        for key, _, unit, _, kind in ROWS:
            values = [found[key] for found in contender["rounds"] if found and key in found]
            if kind != contender["kind"] or not values:
                continue
            row = contender["rows"][key] = spread(values)
            pairs = [(found[key], rate) for found, rate in zip(contender["rounds"], rates) if found and key in found and rate]
            if unit == "MB/s" and pairs:
                row["ratio"] = spread([value / rate for value, rate in pairs])


def short(value):
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def cell(row, divisor):
    text = short(row["median"] / divisor)
    if "ratio" in row:
        ratio = row["ratio"]
        text += f" = {ratio['median']:.2f}x [{ratio['min']:.2f}-{ratio['max']:.2f}]"
    elif row["max"] > row["min"]:
        text += f" [{short(row['min'] / divisor)}-{short(row['max'] / divisor)}]"
    return text


def tables(contenders):
    """One table for each kind: lines of cells, the heading first."""
    for kind in ("download", "mount"):
        chosen = {name: one for name, one in contenders.items() if one["kind"] == kind and one["rows"]}
        if not chosen:
            continue
        lines = [[kind, *chosen]]
        for key, heading, unit, divisor, of in ROWS:
            if of == kind and any(key in one["rows"] for one in chosen.values()):
                cells = [cell(one["rows"][key], divisor) if key in one["rows"] else "-" for one in chosen.values()]
                lines.append([f"{heading}, {unit}", *cells])
        yield lines


def notes(contenders):
    for name, one in contenders.items():
        compared = [found["same_bytes"] for found in one["rounds"] if found and "same_bytes" in found]
        if compared:
            yield f"{name}: bytes {'compared, the same' if all(compared) else 'ARE NOT THOSE OF THE SOURCE'}"
        yield from (f"{name}: {note}" for note in one["notes"])


def named():
    """The key of each row, with a heading that stands alone: what begins with dots goes on from the row above."""
    above = ""
    for key, heading, unit, divisor, kind in ROWS:
        above = above if heading.startswith("...") else heading.removesuffix(", p50")
        yield key, heading.replace("...", above + ","), unit, divisor, kind


def behind(contenders):
    """Where a mount of weightfs is behind another's by more than 2 %: a line for each two, with the rows and both medians."""
    mounts = {name: one["rows"] for name, one in contenders.items() if one["kind"] == "mount"}
    for own in (name for name in mounts if name.startswith("weightfs")):
        for peer in (name for name in mounts if not name.startswith("weightfs")):
            found = list(lost(mounts[own], mounts[peer]))
            if found:
                yield f"{own} is behind {peer}: {'; '.join(found)}"


def lost(own, peer):
    for key, heading, unit, divisor, _ in named():
        if key in own and key in peer:
            ours, other = own[key]["median"], peer[key]["median"]
            if is_behind(unit, ours, other):
                yield f"{heading} {short(ours / divisor)} against {short(other / divisor)} {unit}"


def is_behind(unit, ours, other):
    return ours < other / 1.02 if unit == "MB/s" else ours > other * 1.02


def aligned(lines):
    lines = list(lines)
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    yield from ("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def marked(lines):
    """A table in Markdown."""
    for at, line in enumerate(lines):
        yield "| " + " | ".join(line) + " |"
        if at == 0:
            yield "|" + "---|" * len(line)


def all_notes(contenders):
    yield from notes(contenders)
    others = any(one["kind"] == "mount" and one["rows"] and not name.startswith("weightfs") for name, one in contenders.items())
    missing = list(behind(contenders))
    if others:
        yield from missing or ["weightfs is ahead of every other mount in every row"]


def text(result):
    for lines in tables(result["contenders"]):
        yield ""
        yield from aligned(lines)
    yield ""
    yield from all_notes(result["contenders"])


def markdown(result):
    for lines in tables(result["contenders"]):
        yield ""
        yield from marked(lines)
    yield ""
    yield from (f"- {note}" for note in all_notes(result["contenders"]))


def head(result):
    """One paragraph: what was measured, on what, and how the figures are to be read."""
    machine, load = result["machine"], result["load"]
    cold = "page cache dropped"
    if not result["cold"]:
        cold = "page cache NOT dropped (only root can, and not with --quick): no figure is of a cold reader"
    return (f"{result['weightfs']}; {result['shards']} shards of {result['shard_bytes'] >> 20} MiB, served from "
            f"{'memory' if result['in_memory'] else 'disk'}, store on {result['file_system']}; {result['pairs']} pairs of each row; "
            f"{machine['cpus']} CPUs ({machine['cpu']}), Linux {machine['kernel']}; load {load['before']:.1f} to {load['after']:.1f}; {cold}; "
            f"blobs after a redirect, and files, by {result['front']}. Medians [least-most]; x: in units of what it is measured "
            "against, just before.")
