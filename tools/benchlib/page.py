"""All of a run as one HTML file that needs nothing else: the table, and plots as SVG."""
import html
import math

from . import figures, report, table

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1c2430; background: #fff }
table { border-collapse: collapse; font-size: 12px; margin: 1rem 0; display: block; overflow-x: auto }
td, th { border-bottom: 1px solid #dfe3e8; padding: .25rem .5rem; text-align: left; vertical-align: top }
td.yes { color: #17693c; font-weight: 600 } td.no { color: #a4211b; font-weight: 600 }
svg { display: block; margin: .5rem 0 1.5rem; max-width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: #1c2430 }
li { font-size: 12px }
"""
GOOD, BAD, PLAIN, OTHER = "#2a8a57", "#c0392b", "#48617f", "#b9c3cf"
PARTS = {"cpu_weightfs": "#2f6db3", "cpu_server": "#e0a43a", "cpu_reader": "#7a9e4f"}
LABELS, WIDTH, LINE = 370, 860, 18


class Plot:
    """Horizontal lines under one another, a label before each."""

    def __init__(self, title, about):
        self.title, self.about, self.parts, self.count = title, about, [], 0

    def line(self, label, parts):
        y = self.count * LINE + 26
        self.parts.append(f'<text x="{LABELS - 8}" y="{y + 4}" text-anchor="end">{html.escape(label)}</text>')
        self.parts += [part.replace("{y}", str(y)).replace("{top}", str(y - 5)) for part in parts]
        self.count += 1

    def svg(self, behind=()):
        height = self.count * LINE + 40
        drawn = "".join([*(part.replace("{bottom}", str(height - 12)) for part in behind), *self.parts])
        return (f"<h2>{html.escape(self.title)}</h2><p>{html.escape(self.about)}</p>"
                f'<svg viewBox="0 0 {LABELS + WIDTH + 20} {height}" width="{LABELS + WIDTH + 20}" role="img" '
                f'aria-label="{html.escape(self.title)}">{drawn}</svg>') if self.count else ""


def bar(start, length, colour):
    return f'<rect x="{start:.1f}" y="{{top}}" width="{max(length, 0.5):.1f}" height="10" fill="{colour}"/>'


def words(x, text):
    return f'<text x="{x + 5:.1f}" y="{{y}}" dy="4">{html.escape(text)}</text>'


def goals(rows):
    """Every goal: each pair a dot, in units of the goal, on a scale of powers."""
    plot = Plot("Goals", "Each dot a pair, the stroke their median, in units of the goal; the bar is the side to be on.")
    place = lambda value: LABELS + (min(max(math.log(max(value, 1e-9), 4), -1), 1) + 1) / 2 * WIDTH
    for name, row in rows.items():
        for goal in row["goals"]:
            values = [pair[goal["figure"]] / goal["bound"] for pair in row["pairs"] if pair and goal["figure"] in pair]
            median = row["figures"][goal["figure"]]["median"] / goal["bound"]
            colour = {True: GOOD, False: BAD, None: PLAIN}[goal["reached"]]
            side = (place(1), place(4) - place(1)) if goal["relation"] == "≥" else (place(0.25), place(1) - place(0.25))
            dots = [f'<circle cx="{place(value):.1f}" cy="{{y}}" r="3" fill="{colour}" fill-opacity=".45"/>' for value in values]
            stroke = f'<rect x="{place(median) - 1:.1f}" y="{{top}}" width="2.5" height="10" fill="{colour}"/>'
            plot.line(f"{name}: {figures.heading(goal['figure'])} {goal['goal']}"[:60], [bar(*side, "#eef2f5"), *dots, stroke])
    scale = [f'<line x1="{place(value):.1f}" x2="{place(value):.1f}" y1="16" y2="{{bottom}}" stroke="#98a4b1" stroke-dasharray="{dash}"/>'
             f'<text x="{place(value):.1f}" y="11" text-anchor="middle">{value:g}</text>'
             for value, dash in ((0.25, "2 3"), (0.5, "2 3"), (1, "none"), (2, "2 3"), (4, "2 3"))]
    return plot.svg(scale)


def rates(rows):
    """MB/s of ours, and of what it is measured against."""
    plot = Plot("Rates", "MB/s, medians: weightfs dark, what it is measured against light. Each row has a scale of its own.")
    for name, row in rows.items():
        for figure in (figure for figure in row["figures"] if figure.endswith("mb_s") and not figure.endswith("base_mb_s")):
            base = figure.replace("mb_s", "base_mb_s")
            if base not in row["figures"]:
                continue
            ours, other = (row["figures"][key]["median"] for key in (figure, base))
            full = max(ours, other) / (WIDTH - 330)
            what = "" if figure == "mb_s" else f": {figures.heading(figure)}"
            plot.line(name + what, [bar(LABELS, ours / full, PLAIN), words(LABELS + ours / full, figures.short(ours))])
            plot.line("", [bar(LABELS, other / full, OTHER), words(LABELS + other / full, f"{figures.short(other)}  {row['against']}")])
    return plot.svg()


def costs(rows):
    """CPU seconds per GB, one part a process, after one another."""
    plot = Plot("CPU seconds per GB", "weightfs blue, server yellow, reader green; the stroke is all that the machine was busy with.")
    chosen = {name: row["figures"] for name, row in rows.items() if "cpu_weightfs" in row["figures"]}
    full = max((max(kept["cpu_all"]["median"], sum(kept[part]["median"] for part in PARTS)) for kept in chosen.values()), default=1) or 1
    for name, kept in chosen.items():
        parts, at = [], LABELS
        for part, colour in PARTS.items():
            length = kept[part]["median"] / full * (WIDTH - 120)
            parts.append(bar(at, length, colour))
            at += length
        end = LABELS + kept["cpu_all"]["median"] / full * (WIDTH - 120)
        said = " + ".join(figures.short(kept[part]["median"]) for part in PARTS)
        plot.line(name, [*parts, bar(end, 2, "#1c2430"), words(max(at, end), said)])
    return plot.svg()


def contenders(found):
    """One plot a row of the contenders' table."""
    for key, heading, unit, divisor, kind in report.ROWS:
        chosen = {name: one["rows"][key] for name, one in found.items() if one["kind"] == kind and key in one["rows"]}
        if len(chosen) < 2:
            continue
        plot = Plot(f"{heading}, {unit}", "More is better." if unit == "MB/s" else "Less is better.")
        full = max(row["median"] for row in chosen.values()) / (WIDTH - 120) or 1
        for name, row in chosen.items():
            length = row["median"] / full
            colour = PLAIN if name.startswith("weightfs") else OTHER
            plot.line(name, [bar(LABELS, length, colour), words(LABELS + length, report.short(row["median"] / divisor))])
        yield plot.svg()


def tabled(lines):
    rows = []
    for at, line in enumerate(lines):
        tag = "td" if at else "th"
        cells = (f'<{tag} class="{cell if cell in ("yes", "no") else ""}">{html.escape(cell)}</{tag}>' for cell in line)
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def listed(lines):
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def page(result):
    rows, others = result["rows"], result["contenders"]
    parts = [f"<h1>weightfs, measured</h1><p>{html.escape(report.head(result))}</p>"]
    if rows:
        parts += [tabled(table.lines(rows)), listed(table.more(rows)), goals(rows), rates(rows), costs(rows)]
    if others:
        parts += ["<h1>Beside other ways to the same bytes</h1>", *map(tabled, report.tables(others)), listed(report.all_notes(others)),
                  *contenders(others)]
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>weightfs, measured</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n")
