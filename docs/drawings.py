"""Write what is computed in cpu-kernels.md: its tables and the two drawings. `python docs/drawings.py`."""

from __future__ import annotations

import math
from pathlib import Path

from roofline import (
    BLOCKS,
    PASSES,
    PEAK,
    POST,
    PRE,
    READ,
    SHAPES,
    WRITE,
    Pass,
    arithmetic,
    floors_table,
    memory_bytes,
    multiply_adds,
    nanoseconds,
    passes_table,
    tile_bytes,
)

HERE = Path(__file__).parent

STYLE = """<style>
  svg { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --box: #f2f5f8;
        --read: #0969da; --write: #bc4c00; --c16: #0969da; --c32: #8250df; --c64: #1a7f37; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #0d1117; --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --box: #161b22;
          --read: #58a6ff; --write: #f0883e; --c16: #58a6ff; --c32: #bc8cff; --c64: #3fb950; }
  }
  text { font: 13px system-ui, sans-serif; fill: var(--ink); }
  .small { font-size: 11.5px; } .soft { fill: var(--soft); } .head { font-weight: 600; }
  .middle { text-anchor: middle; } .end { text-anchor: end; }
</style>"""


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
    paper = f'<rect width="{width}" height="{height}" rx="8" style="fill: var(--paper)"/>'
    return "\n".join([head, f"<title>{title}</title>", STYLE, paper, *parts, "</svg>\n"])


def text(x: float, y: float, words: str, kinds: str = "") -> str:
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kinds}">{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" style="stroke: var(--{colour}); fill: none" {more}/>'


def arrow(x: float, y1: float, y2: float, colour: str) -> str:
    back = -7 if y2 > y1 else 7
    tip = f"M{x - 4:.1f} {y2 + back:.1f}L{x:.1f} {y2:.1f}L{x + 4:.1f} {y2 + back:.1f}Z"
    return line(x, y1, x, y2, colour, 'stroke-width="1.6"') + f'<path d="{tip}" style="fill: var(--{colour})"/>'


WIDE, COLUMN = 960, 228


def draw_passes() -> str:
    parts = [text(24, 28, "The four passes of a block in a training step", "head")]
    parts += [text(24, 47, "blue: read from memory, once; orange: written; in the boxes: in cache", "soft")]
    for row, form in enumerate((POST, PRE)):
        top = 66 + row * 292
        parts.append(text(24, top + 14, form, "head"))
        parts.append(f'<rect x="24" y="{top + 24}" width="912" height="50" rx="6" style="fill: var(--box)"/>')
        parts.append(text(34, top + 42, "memory", "small soft"))
        for column, step in enumerate(s for s in PASSES if s.form == form):
            parts += _draw_pass(step, 24 + column * COLUMN, top)
    return svg(WIDE, 650, "Passes of a block", parts)


def _draw_pass(step: Pass, left: float, top: float) -> list[str]:
    width, box, high = COLUMN - 12, top + 128, 124
    parts = [f'<rect x="{left}" y="{box}" width="{width}" height="{high}" rx="6" '
             'style="fill: var(--box); stroke: var(--line)"/>']  # fmt: skip
    moved = [(name, "read") for name in step.reads] + [(name, "write") for name in step.writes]
    for i, (name, kind) in enumerate(moved):
        x = left + (i + 0.5) * width / len(moved)
        parts.append(text(x, top + 66, name, "middle"))
        parts.append(arrow(x, top + 76, box - 4, "read") if kind == "read" else arrow(x, box, top + 78, "write"))
    products = ["\u00d7 36 matrices of weights"]
    if step.products == 2:
        products = ["36 sums V\u1d40E: weight gradient", "\u00d7 36 matrices of turned weights"]
    words = [(step.name, "head"), *((w, "small") for w in _wrapped(step.prologue))]
    words += [("bordered images, panels of tiles", "small soft"), *((w, "small") for w in products)]
    words.append(("transform; " + step.epilogue, "small"))
    return parts + [text(left + 10, box + 20 + 16 * i, word, kinds) for i, (word, kinds) in enumerate(words)]


def _wrapped(words: str) -> list[str]:
    first, _, second = words.partition("; ")
    return [first + ";", second] if second else [first]


LOWEST, HIGHEST = 1.5, 1000.0  # multiply-adds a byte
SLOWEST, FASTEST = 20.0, 110.0  # 10^9 of them a second


def draw_roofline() -> str:
    parts = [text(24, 28, "One core: what each pass can reach at most", "head"), *_axes()]
    for side, colour in ((READ, "read"), (WRITE, "write")):
        start = max(LOWEST, SLOWEST / side["memory"])
        parts.append(line(*_at(start, start * side["memory"]), *_at(PEAK / side["memory"], PEAK), colour))
    parts.append(line(*_at(PEAK / WRITE["memory"], PEAK), *_at(HIGHEST, PEAK), "ink", 'stroke-width="1.6"'))
    parts.append(text(RIGHT, _at(LOWEST, PEAK)[1] - 8, f"{PEAK}: multiply-adds in registers", "small end"))
    for channels in SHAPES:
        parts += _points(channels)
    return svg(WIDE, 560, "Roofline", parts + _legend())


LEFT, RIGHT, TOP, BOTTOM = 70, 930, 60, 400


def _at(intensity: float, speed: float) -> tuple[float, float]:
    x = math.log(intensity / LOWEST) / math.log(HIGHEST / LOWEST)
    y = math.log(speed / SLOWEST) / math.log(FASTEST / SLOWEST)
    return LEFT + x * (RIGHT - LEFT), BOTTOM - y * (BOTTOM - TOP)


def _axes() -> list[str]:
    parts = []
    for value in (2, 5, 10, 20, 50, 100, 200, 500, 1000):
        x, _ = _at(value, SLOWEST)
        parts += [line(x, TOP, x, BOTTOM, "line"), text(x, BOTTOM + 18, str(value), "middle small")]
    for value in (20, 30, 50, 100):
        _, y = _at(LOWEST, value)
        parts += [line(LEFT, y, RIGHT, y, "line"), text(LEFT - 8, y + 4, str(value), "end small")]
    words = "multiply-adds of the products for each byte of memory"
    parts.append(text((LEFT + RIGHT) / 2, BOTTOM + 38, words, "middle small"))
    parts.append(text(24, TOP - 12, "10^9 multiply-adds a second", "small"))
    return parts


def _points(channels: int) -> list[str]:
    points: dict[str, tuple[float, float]] = {}
    for step in PASSES:
        moved, work = memory_bytes(step, channels), multiply_adds(channels, step.products)
        seconds = max(arithmetic(channels, step.products), nanoseconds(moved, "memory"))
        points.setdefault(step.key, (work / sum(moved), work / seconds))
    work = multiply_adds(channels, 1)
    points["v"] = work * BLOCKS / tile_bytes(channels), work / arithmetic(channels, 1)
    parts, labels = [], {}
    for key, point in points.items():
        x, y = _at(*point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" style="fill: var(--c{channels})"/>')
        near = next((at for at in labels if math.dist(at, (x, y)) < 12), (x, y))  # one label for those
        labels[near] = f"{labels[near]}, {key}" if near in labels else key
    side, kinds = (-9, "small end") if channels == 32 else (9, "small")  # neighbours of two shapes
    return parts + [text(x + side, y + 10, keys, kinds) for (x, y), keys in labels.items()]


def _legend() -> list[str]:
    parts, words = [], {key: [] for key in "abcde"}
    for step in PASSES:
        words[step.key].append(f"{step.form} {step.name}")
    for i, (channels, shape) in enumerate(SHAPES.items()):
        y = 470 + 20 * i
        parts.append(f'<circle cx="78" cy="{y - 4}" r="7" style="fill: var(--c{channels})"/>')
        parts.append(text(92, y, shape))
    words["v"] = [f"evaluation, a stage of {BLOCKS} blocks, depth-first"]
    for i, (key, said) in enumerate(words.items()):
        parts += [text(200, 465 + 17 * i, key), text(218, 465 + 17 * i, "; ".join(said), "small")]
    for i, (colour, said) in enumerate((("read", "bytes that are read"), ("write", "bytes that are streamed"))):
        parts += [line(700, 466 + 20 * i, 730, 466 + 20 * i, colour), text(738, 470 + 20 * i, said, "small")]
    return parts


def written() -> dict[Path, str]:
    """Return the files and what stands in them."""
    page = HERE / "cpu-kernels.md"
    words = page.read_text()
    for name, table in (("passes", passes_table()), ("floors", floors_table())):
        begin, end = f"<!-- {name}, by docs/drawings.py -->\n", f"<!-- /{name} -->"
        before, _, rest = words.partition(begin)
        words = f"{before}{begin}{table}\n{end}{rest.partition(end)[2]}"
    return {page: words, HERE / "cpu-passes.svg": draw_passes(), HERE / "cpu-roofline.svg": draw_roofline()}


if __name__ == "__main__":
    for path, words in written().items():
        path.write_text(words)
