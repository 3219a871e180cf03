"""Training metrics: append lines to `curve.csv`, and plot them as SVG for the model card."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM = 720, 320, 56, 44
SHADES = ("#b91c1c", "#2563eb", "#f59e0b", "#16a34a")

Point = Mapping[str, float]


def note(path: Path, numbers: Point) -> None:
    """Append a line to the file; its first line names the columns, and numbers without a column are left out."""
    columns = path.read_text("utf-8").partition("\n")[0].strip().split(",") if path.exists() else []
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns or list(numbers), extrasaction="ignore")
        if not columns:
            writer.writeheader()
        writer.writerow({name: f"{number:.6g}" for name, number in numbers.items()})


def read(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def draw_curve(points: Sequence[Point], *, across: str, names: Sequence[str]) -> str:
    """An SVG of the columns `names` against the column `across`."""
    most = max(point[across] for point in points) or 1.0
    values = [point[name] for point in points for name in names]
    edge = 0.05 * (max(values) - min(values)) or 0.1
    low, high = min(values) - edge, max(values) + edge

    def at(x: float, y: float) -> tuple[float, float]:
        up = (y - low) / (high - low)
        return LEFT + (WIDTH - LEFT - 16) * x / most, HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 32) * up

    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>']
    for i in range(5):
        x, y = most * i / 4, low + (high - low) * i / 4
        (left, level), (right, _) = at(0, y), at(most, y)
        parts.append(f'<path d="M{left:.1f} {level:.1f}H{right:.1f}" stroke="#e4e4e7"/>')
        parts.append(text(left - 8, level + 4, f"{y:.3g}", anchor="end"))
        parts.append(text(at(x, low)[0], HEIGHT - BOTTOM + 18, f"{x:.3g}", anchor="middle"))
    parts.append(text(at(most / 2, low)[0], HEIGHT - 8, across.replace("_", " "), anchor="middle"))
    for i, (name, shade) in enumerate(zip(names, SHADES, strict=False)):
        line = " ".join("{:.1f},{:.1f}".format(*at(point[across], point[name])) for point in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{shade}" stroke-width="2"/>')
        parts.append(f'<circle cx="{LEFT + 6 + 150 * i}" cy="16" r="4" fill="{shade}"/>')
        parts.append(text(LEFT + 16 + 150 * i, 20, name.replace("_", " ")))
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">\n{body}\n</svg>\n'


def text(x: float, y: float, words: str, *, anchor: str = "start") -> str:
    style = 'font-family="sans-serif" font-size="12" fill="#27272a"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{words}</text>'
