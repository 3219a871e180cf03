"""Plot a schedule: the noise level, and the coefficients of the history, by row."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from safelight.diffusion.schedule import HISTORY, Schedule

WIDTH, HEIGHT, MARGIN = 900, 290, 56
INK, FAINT, PAPER = "#27272a", "#e4e4e7", "#ffffff"
SHADES = ("#b91c1c", "#ea580c", "#f59e0b", "#facc15")
"""From the newest history entry to the oldest: a safelight's red, fading."""

SCALE = 2
"""Supersampling factor, since Pillow's lines are not anti-aliased."""


def plot(schedule: Schedule, title: str = "") -> Image.Image:
    """Plot the noise-to-signal ratio by row, then the coefficients X of latents and M of outputs, one colour per k."""
    ratio = schedule.sigma[:-1] / schedule.signal[:-1].clip(1e-4)
    latents = {f"X x[i-{k}]" if k else "X x[i]": schedule.x[:, k] for k in range(HISTORY) if schedule.x[:, k].any()}
    outputs = {f"M m[i-{k}]" if k else "M m[i]": schedule.m[:, k] for k in range(HISTORY) if schedule.m[:, k].any()}
    heading = f"{title}   {schedule.steps} steps, {len(schedule)} calls, {int(schedule.draws.sum())} draws of noise"
    panels = [({"sigma / signal": ratio}, True), (latents, False), (outputs, False)]
    canvas = Image.new("RGB", (WIDTH * SCALE, (len(panels) * HEIGHT + MARGIN) * SCALE), PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN * SCALE, 18 * SCALE), heading.strip(), fill=INK, font=ImageFont.load_default(18 * SCALE))
    for row, (curves, logarithmic) in enumerate(panels):
        _panel(pen, curves, top=MARGIN + row * HEIGHT, logarithmic=logarithmic)
    return canvas.resize((canvas.width // SCALE, canvas.height // SCALE), Image.Resampling.LANCZOS)


def _panel(
    pen: ImageDraw.ImageDraw, curves: dict[str, npt.NDArray[np.float64]], *, top: int, logarithmic: bool
) -> None:
    """Draw one panel: ticks, a line with dots for each curve, and a legend above."""
    font = ImageFont.load_default(13 * SCALE)
    left, right = MARGIN, WIDTH - 24
    ceiling, floor = top + 26, top + HEIGHT - 34
    scaled = {name: np.log10(values.clip(1e-4)) if logarithmic else values for name, values in curves.items()}
    low = min(0.0 if not logarithmic else np.inf, *(values.min() for values in scaled.values()))
    high = max(values.max() for values in scaled.values())
    low, high = (np.floor(low), np.ceil(high)) if logarithmic else (low, max(high, low + 1e-3))
    rows = max(len(values) for values in scaled.values())

    def at(row: float, value: float) -> tuple[float, float]:
        across = left + (right - left) * (row / max(rows - 1, 1))
        return across * SCALE, (floor - (floor - ceiling) * (value - low) / (high - low)) * SCALE

    for tick in np.arange(low, high + 1) if logarithmic else np.linspace(low, high, 5):
        _, y = at(0, tick)
        pen.line([(left * SCALE, y), (right * SCALE, y)], fill=FAINT, width=SCALE)
        label = f"{10**tick:g}" if logarithmic else f"{tick:.2f}"
        pen.text(((left - 8) * SCALE, y), label, fill=INK, font=font, anchor="rm")
    for row in sorted({round(row) for row in np.linspace(0, rows - 1, 6)}):
        pen.text((at(row, low)[0], (floor + 14) * SCALE), str(row), fill=INK, font=font, anchor="mm")

    legend = left
    for (name, values), shade in zip(scaled.items(), SHADES, strict=False):
        points = [at(row, value) for row, value in enumerate(values)]
        pen.line(points, fill=shade, width=2 * SCALE, joint="curve")
        if rows <= 60:
            for x, y in points:
                pen.circle((x, y), 3 * SCALE, fill=shade)
        pen.circle(((legend + 5) * SCALE, (top + 10) * SCALE), 4 * SCALE, fill=shade)
        pen.text(((legend + 14) * SCALE, (top + 10) * SCALE), name, fill=INK, font=font, anchor="lm")
        legend += 110
