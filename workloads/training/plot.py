"""A training's curves as one HTML file without scripts or anything from elsewhere. Pure."""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workloads.training.outcome import Trained

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 720, 260, 64, 28, 12
MOST_POINTS = 600

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:760px;color:#1b1f24}"
    "h2{font-size:1rem;margin:1.5rem 0 .25rem}td{padding:.1rem 1.5rem .1rem 0}td:first-child{color:#57606a}"
    "svg{width:100%;height:auto}.line{fill:none;stroke:#0969da;stroke-width:1.5}.axis{stroke:#d0d7de}"
    "text{font:11px system-ui,sans-serif;fill:#57606a}.again{stroke:#bc4c00;stroke-dasharray:3 3}"
)


def page(trained: Trained) -> str:
    """The whole file."""
    curves = [
        ("Loss", "loss"),
        ("Samples per second", "samples_per_s"),
        ("Tokens per second", "tokens_per_s"),
        ("Cost in USD", "cost_usd"),
        ("GPU utilisation", "utilisation"),
    ]
    drawn = "".join(
        f"<h2>{title}</h2>{curve(trained.metrics, name)}" for title, name in curves if _shows(trained.metrics, name)
    )
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in _facts(trained))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Training {html.escape(trained.run)}</title>'
        f"<style>{_STYLE}</style><h1>Training</h1><table>{rows}</table>{drawn}</html>\n"
    )


def curve(records: Sequence[Mapping[str, Any]], name: str) -> str:
    """One curve over the steps as SVG; a dashed line stands where an attempt began."""
    points = [(r["step"], float(r[name]), r.get("attempt", 1)) for r in records if r.get(name) is not None]
    points = points[:: max(1, len(points) // MOST_POINTS)]
    across = _scale([step for step, _, _ in points], LEFT, WIDTH - 8)
    up = _scale([value for _, value, _ in points], HEIGHT - BOTTOM, TOP)
    line = " ".join(f"{across(step):.1f},{up(value):.1f}" for step, value, _ in points)
    begun = [step for (step, _, now), (_, _, before) in zip(points[1:], points, strict=False) if now != before]
    again = "".join(
        f'<line class="again" x1="{across(s):.1f}" x2="{across(s):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        for s in begun
    )
    labels = _labels([step for step, _, _ in points], [value for _, value, _ in points])
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(name)} by step">'
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 8}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
        f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'{labels}{again}<polyline class="line" points="{line}"/></svg>'
    )


def _shows(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether there is anything to see."""
    return any(record.get(name) for record in records)


def _facts(trained: Trained) -> list[tuple[str, str]]:
    last = trained.metrics[-1] if trained.metrics else {}
    facts = [("run", trained.run), ("ranks", str(trained.world_size)), ("attempts", str(trained.attempts))]
    facts += [("steps", str(last.get("step", 0))), ("stopped by", trained.stopped or "its own end")]
    if last.get("loss") is not None:
        facts.append(("last loss", f"{last['loss']:.5f}"))
    if trained.best is not None:
        facts.append(("best loss", f"{trained.best['loss']:.5f} at step {trained.best['step']}"))
    if trained.cost is not None:
        facts.append(("cost", str(trained.cost)))
        if last.get("epoch"):
            facts.append(("cost per epoch", f"USD {float(trained.cost.accrued) / last['epoch']:.6f}"))
    return [(name, value) for name, value in facts if value]


def _scale(values: Sequence[float], low: float, high: float) -> Callable[[float], float]:
    least, most = min(values, default=0.0), max(values, default=1.0)
    span = (most - least) or 1.0
    return lambda value: low + (value - least) / span * (high - low)


def _labels(steps: Sequence[float], values: Sequence[float]) -> str:
    ends = [(min(values, default=0.0), HEIGHT - BOTTOM), (max(values, default=0.0), TOP + 8)]
    up = "".join(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end">{value:.4g}</text>' for value, y in ends)
    sides = [(min(steps, default=0), LEFT, "start"), (max(steps, default=0), WIDTH - 8, "end")]
    return up + "".join(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="{side}">{v}</text>' for v, x, side in sides)
