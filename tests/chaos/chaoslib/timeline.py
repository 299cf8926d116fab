# SPDX-License-Identifier: LGPL-2.1-or-later
"""timeline.py - a run as a picture: who was what when, checkpoints by cause, faults, stalls. Pure: plain SVG from plain data."""
from xml.sax.saxutils import escape

WIDTH = 1200
LEFT, RIGHT = 110, 20
LANE, TICKS, BAR = 26, 14, 16  # heights
TOP = 16
STAGGER = 4  # rows of the numbers of faults
ROW = 13
COLUMNS, LIST_WIDTH = 4, 48  # of the list of faults; characters
FAULT = "#a01010"
COLOURS = {  # what a state looks like; those not named are on their way to another one
    "protected": "#2e9e4f", "standby": "#8fd19e", "alone": "#f2c230", "preparing": "#f7dc7e", "syncing": "#f7dc7e",
    "migrating": "#d9cf5a", "incoming": "#bcd6ee", "incoming-start": "#d5e5f4", "idle": "#e6e6e6", "off": "#cfcfcf",
    "claim-primary": "#e8743b", "claim-secondary": "#e8743b", "taking-over": "#e8743b", "resuming": "#e8743b", "judging": "#e8743b",
    "handing-over": "#b07cc6", "proving": "#b07cc6", None: "#505050"}
OTHER_STATE = "#c9b8a0"
LEGEND = ("protected", "standby", "alone", "syncing", "migrating", "incoming", "idle", "taking-over", "handing-over", None)
CAUSES = ("interval", "divergence", "compare-timeout", "operator", "overlay", "memory")
CAUSE_COLOURS = ("#888888", "#d62728", "#ff7f0e", "#1f77b4", "#9467bd", "#17becf", "#8c564b", "#e377c2", "#bcbd22")
STALL = "#d62728"


class Picture:
    def __init__(self, start, end):
        self.start = start
        self.span = max(0.001, end - start)
        self.parts = []
        self.height = TOP

    def x(self, when):
        return round(LEFT + max(0, min(1, (when - self.start) / self.span)) * (WIDTH - LEFT - RIGHT), 2)

    def text(self, x, y, text, size=11, anchor="start", colour="#222"):
        self.parts.append(f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>')

    def box(self, x, y, width, height, colour, title=""):
        inner = f"<title>{escape(title)}</title>" if title else ""
        self.parts.append(f'<rect x="{x}" y="{y}" width="{max(0.5, round(width, 2))}" height="{height}" fill="{colour}">{inner}</rect>')

    def line(self, x, top, bottom, colour, width=1, dash=""):
        self.parts.append(f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom}" stroke="{colour}" stroke-width="{width}"'
                          + (f' stroke-dasharray="{dash}"' if dash else "") + "/>")

    def svg(self, title):
        return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{self.height}" '
                f'viewBox="0 0 {WIDTH} {self.height}" font-family="sans-serif"><title>{escape(title)}</title>'
                f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(self.parts) + "\n</svg>\n")


def nice_step(span):
    for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600):
        if span / step <= 16:
            return step
    return 3600


def draw_faults(picture, faults):
    """A number at each, in rows below each other, so that neighbours can be read; draw_list() says what they were."""
    top = picture.height
    ends = [0.0] * STAGGER  # where the last number of each row ends
    for number, (when, _, _) in enumerate(faults, 1):
        x = picture.x(when)
        row = next((row for row in range(STAGGER) if ends[row] <= x), min(range(STAGGER), key=lambda row: ends[row]))
        ends[row] = x + 7 * len(str(number)) + 5
        picture.text(min(x + 2, WIDTH - 20), top + (row + 1) * ROW, str(number), 10, "start", FAULT)
    picture.height += STAGGER * ROW + 6
    return top


def draw_list(picture, faults):
    """Column by column."""
    top = picture.height + 8
    rows = max(1, -(-len(faults) // COLUMNS))
    for number, (when, text, host) in enumerate(faults):
        x = 14 + number // rows * ((WIDTH - 20) // COLUMNS)
        y = top + (number % rows + 1) * ROW
        line = f"{number + 1}  {when - picture.start:.1f} s  {text}" + (f" [{host}]" if host else "")
        picture.text(x, y, line if len(line) <= LIST_WIDTH else line[:LIST_WIDTH - 1] + "…", 10, "start", FAULT)
    picture.height = top + rows * ROW + 10


def draw_lane(picture, name, samples, ticks, end):
    """samples: [(when, state, role, generation, reason)] from then on."""
    y = picture.height
    picture.text(LEFT - 8, y + 17, f"host {name}", 12, "end")
    for (when, state, generation, reason), follower in zip(samples, [*samples[1:], (end, None, None, None)]):
        if follower[0] < picture.start:
            continue
        x = picture.x(when)
        title = f"{state or 'no colod answers'}, generation {generation}" + (f": {reason}" if reason else "")
        picture.box(x, y, picture.x(follower[0]) - x, LANE, COLOURS.get(state, OTHER_STATE), title)
        if picture.x(follower[0]) - x > len(str(state)) * 6.5 + 4:
            picture.text(x + 3, y + 17, str(state or "(silent)"), 11, "start", "#fff" if state in (None, "protected") else "#222")
    for when, cause in ticks:
        picture.line(picture.x(when), y + LANE + 1, y + LANE + TICKS - 2, cause_colour(cause))
    picture.height += LANE + TICKS + 6


def cause_colour(cause):
    number = CAUSES.index(cause) if cause in CAUSES else len(CAUSES) + sum(map(ord, cause)) % 3
    return CAUSE_COLOURS[number]


def draw_stalls(picture, name, stalls):
    """stalls: [(when it began, ms)]"""
    y = picture.height
    picture.text(LEFT - 8, y + 12, name, 11, "end")
    picture.box(LEFT, y + BAR // 2, WIDTH - LEFT - RIGHT, 1, "#dddddd")
    for when, ms in stalls:
        x = picture.x(when)
        picture.box(x, y + 2, picture.x(when + ms / 1000) - x, BAR - 4, STALL, f"{name}: {ms} ms without an answer")
    picture.height += BAR + 2


def draw_axis(picture, top):
    y = picture.height + 4
    step = nice_step(picture.span)
    count = int(picture.span / step)
    for number in range(count + 1):
        x = picture.x(picture.start + number * step)
        picture.line(x, top, y, "#eeeeee")
        picture.text(x, y + 12, f"{number * step:g} s", 10, "middle", "#666")
    picture.height = y + 22


def draw_legend(picture, causes):
    x, y = LEFT, picture.height
    for state in LEGEND:
        label = state or "silent"
        picture.box(x, y, 12, 12, COLOURS[state])
        picture.text(x + 16, y + 10, label, 10)
        x += 30 + len(label) * 6
    x, y = LEFT, y + 20
    picture.text(LEFT - 8, y + 10, "checkpoints", 10, "end")
    for cause in sorted(causes):
        picture.line(x + 4, y, y + 12, cause_colour(cause), 2)
        picture.text(x + 10, y + 10, cause, 10)
        x += 30 + len(cause) * 6
    picture.box(x + 10, y + 1, 22, 10, STALL)
    picture.text(x + 36, y + 10, "stall of a client", 10)
    picture.line(x + 146, y, y + 12, FAULT, 1, "3,2")
    picture.text(x + 152, y + 10, "step", 10)
    picture.height = y + 24


def timeline(title, start, end, hosts, faults, stalls):
    """The SVG's text. hosts: {name: ([(when, state, generation, reason)], [(when, cause of a checkpoint)])};
    faults: [(when, text, host or None)]; stalls: {client: [(when, ms)]}; times in seconds of one clock."""
    picture = Picture(start, end)
    picture.text(LEFT, picture.height, title, 13)
    picture.height += 6
    top = draw_faults(picture, faults)
    lanes = picture.height
    for name, (samples, ticks) in hosts.items():
        draw_lane(picture, name, samples, ticks, end)
    for name, found in stalls.items():
        draw_stalls(picture, name, found)
    for when, _, _ in faults:
        picture.line(picture.x(when), top, picture.height, FAULT, 1, "3,2")
    draw_axis(picture, lanes)
    draw_legend(picture, {cause for _, ticks in hosts.values() for _, cause in ticks})
    draw_list(picture, faults)
    return picture.svg(title)
