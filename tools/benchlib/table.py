"""The table of rows, as text and as Markdown."""
from . import figures, report

HEAD = ["row", "artifact", "against", "figure", "median [range]", "goal", "reached", "MB/s, the other's",
        "CPU s/GB: weightfs, server, reader, all", "peak MiB"]
SAID = {True: "yes", False: "no", None: "-"}


def lines(found):
    """The table's lines of cells, the heading first: one a goal, or one for the ratio of a row without."""
    yield HEAD
    for name, row in found.items():
        kept = row["figures"]
        goals = {goal["figure"]: goal for goal in row["goals"]}
        shown = [*goals, *(figure for figure in ("ratio",) if figure in kept and not any(goal.startswith("ratio") for goal in goals))]
        for number, figure in enumerate(shown or [None]):
            goal = goals.get(figure, {"goal": "-", "reached": None})
            about = [f"{row['heading']} ({name})", row["artifact"], row["against"]] if number == 0 else ["", "", ""]
            what = [figures.heading(figure), figures.said(figure, kept[figure])] if figure else ["-", "-"]
            yield [*about, *what, goal["goal"], SAID[goal["reached"]], *(costs(kept) if number == 0 else ["", "", ""])]


def costs(kept):
    """Rates, CPU and memory, as far as they were measured."""
    one = lambda figure: figures.short(kept[figure]["median"] / figures.unit(figure)[1]) if figure in kept else "-"
    rates = one("mb_s") + (f", {one('base_mb_s')}" if "base_mb_s" in kept else "")
    cpu = " ".join(map(one, figures.CPU)) if "cpu_weightfs" in kept else "-"
    return [rates, cpu, one("peak")]


def more(found):
    """What else was measured, a line a row; and its notes."""
    for name, row in found.items():
        shown = {goal["figure"] for goal in row["goals"]} | {"ratio"}
        rest = [f"{figures.heading(figure)} {figures.said(figure, value)}" for figure, value in row["figures"].items()
                if figure not in shown and figure not in figures.COLUMNS]
        if rest:
            yield f"{name}: {'; '.join(rest)}"
        yield from (f"{name}: {note}" for note in row["notes"])


def text(result):
    yield from report.aligned(lines(result["rows"]))
    yield ""
    yield from more(result["rows"])


def markdown(result):
    yield from report.marked(lines(result["rows"]))
    yield ""
    yield from (f"- {line}" for line in more(result["rows"]))
