"""The picture: CPU time per request of every target, compared with nginx, on a logarithmic axis."""

import html
import math

from . import report

WIDTH, LEFT, RIGHT, ROW, TOP = 900, 300, 70, 20, 56
# The look of a mark by the number of connections; other numbers look like the first.
MARKS = {32: "main", 1: "few", 256: "many"}
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 } .scene { font-weight: 600 } .quiet { fill: #656d76 }
  .axis { stroke: #d0d7de } .one { stroke: #656d76 }
  .main { fill: #0969da } .few { fill: none; stroke: #0969da; stroke-width: 1.5 }
  .many { fill: #bf5b04 } .spread { stroke: #0969da }
  .back { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .quiet { fill: #8d96a0 } .back { fill: #0d1117 }
    .axis { stroke: #30363d } .one { stroke: #8d96a0 }
    .main { fill: #4493f8 } .few { stroke: #4493f8 } .many { fill: #f0883e } .spread { stroke: #4493f8 }
  }
"""


def draw(results):
    """Returns the picture as SVG."""
    ratios = [one["cpu_ratio"] for one in report.every_sample(results)]
    low, high = math.log2(min(0.75, *ratios)), math.log2(max(2, *ratios) * 1.1)

    def x(ratio):
        return LEFT + (math.log2(ratio) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    rows, y = [], TOP
    for scene, targets in results:
        y += ROW
        rows.append(text(8, y + 4, scene.title, "scene"))
        for target in targets[1:]:
            y += ROW
            rows.append(text(LEFT - 12, y + 4, target.name, anchor="end"))
            rows += marks(target, scene.connections, x, y)
        y += ROW // 2
    bottom = y + ROW // 2
    axis = []
    for power in range(math.ceil(low), math.floor(high) + 1):
        at = x(2.0 ** power)
        axis.append(line(at, TOP, at, bottom, "one" if power == 0 else "axis"))
        axis.append(text(at, bottom + 16, f"{2.0 ** power:g}", "quiet", "middle"))
    head = [text(8, 20, "CPU time per request, nginx as a plain proxy = 1", "title"),
            text(8, 40, "connections:", "quiet")]
    at = 92
    for connections, look in [(1, "few"), (32, "main"), (256, "many")]:
        head += [circle(at, 36, look), text(at + 8, 40, str(connections), "quiet")]
        at += 50
    head.append(text(at, 40, "logarithmic axis, less is better; the numbers are those of the filled blue marks", "quiet"))
    height = bottom + 28
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-label="CPU time per request, compared with nginx">',
        f"<style>{STYLE}</style>", f'<rect class="back" width="{WIDTH}" height="{height}"/>',
        *head, *axis, *rows, "</svg>", ""])


def marks(target, counts, x, y):
    if target.failure:
        return [text(LEFT, y + 4, "not measured", "quiet")]
    drawn = []
    for connections in counts:
        ratio = report.median(target, connections, "cpu_ratio")
        if connections == counts[0]:
            ratios = [sample["cpu_ratio"] for sample in target.samples[connections]]
            drawn.append(line(x(min(ratios)), y, x(max(ratios)), y, "spread"))
            drawn.append(circle(x(ratio), y, "main"))
            drawn.append(text(WIDTH - 12, y + 4, f"{ratio:.2f}", anchor="end"))
        else:
            drawn.append(circle(x(ratio), y, MARKS.get(connections, "main")))
    return drawn


def text(x, y, words, look="", anchor="start"):
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{look}" text-anchor="{anchor}">{html.escape(words)}</text>'


def line(x1, y1, x2, y2, look):
    return f'<line x1="{x1:.1f}" y1="{y1:.0f}" x2="{x2:.1f}" y2="{y2:.0f}" class="{look}"/>'


def circle(x, y, look):
    return f'<circle cx="{x:.1f}" cy="{y:.0f}" r="4" class="{look}"/>'
