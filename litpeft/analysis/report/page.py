"""Write the report as one HTML file that loads nothing from a network and runs only its own scripts."""

from __future__ import annotations

import base64
import gzip
import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from litpeft import __version__
from litpeft.analysis.comparison import Comparison
from litpeft.analysis.comparison.answer import answer
from litpeft.analysis.comparison.sentences import plain_title
from litpeft.analysis.report.budgets import budget_charts
from litpeft.analysis.report.chart import Chart
from litpeft.analysis.report.costs import RATES, estimate_charts, memory_charts, peak_chart, step_chart
from litpeft.analysis.report.curves import TAGS
from litpeft.analysis.report.data_section import data_facts
from litpeft.analysis.report.learning import curve_charts, read_lines
from litpeft.analysis.report.mistakes import mistakes
from litpeft.analysis.report.relative import relative_chart
from litpeft.analysis.report.sections import sections
from litpeft.analysis.report.style import LIGHT, PARTS_LIGHT, look, themes
from litpeft.analysis.report.table import definition, main_columns, rows
from litpeft.analysis.report.tradeoffs import tradeoff_charts
from litpeft.analysis.report.tuned import tuning_chart
from litpeft.errors import UserError, writing
from litpeft.runs.record import FIELDS

HERE = Path(__file__).parent
VALIDATED = "val_loss", "val_accuracy"
MISSING = "litpeft report needs {}: pip install 'litpeft[report]'"


@dataclass(frozen=True)
class Part:
    """Charts under one heading of the page."""

    name: str
    title: str
    charts: list[Chart]


def parts(comparison: Comparison) -> list[Part]:
    """Return the parts of the page; parts without charts are left out."""
    lines = read_lines(comparison)
    once = [tag for tag in lines if tag in VALIDATED or tag not in TAGS]
    once = [tag for tag in once if all(len(line.curve) == 1 for line in lines[tag])]
    curves = curve_charts({tag: lines[tag] for tag in lines if tag not in once})  # a single point is not a curve
    scored = [tag for tag in curves if tag not in TAGS]
    tuned = tuning_chart(comparison)
    learning = [tuned] if tuned else []
    learning += [curves[tag] for tag in ("train_loss", *VALIDATED, *scored) if tag in curves]
    scores = [figure.name for figure in comparison.figures if figure.name.startswith("score_")]
    learning += estimate_charts(comparison, [*once, *scores])
    targets = [figure.name for figure in comparison.figures if figure.name.startswith("seconds_to_")]
    speed = [
        *estimate_charts(comparison, [*RATES, *targets]),
        step_chart(comparison),
        curves.get("train_tokens_per_second") or curves.get("train_samples_per_second"),
    ]
    relative = relative_chart(comparison)
    all_parts = [
        Part(
            "tradeoffs",
            "Quality against cost",
            [*tradeoff_charts(comparison), *([relative] if relative else []), *budget_charts(comparison)],
        ),
        Part("learning", "Learning", learning),
        Part("memory", "Memory", [*memory_charts(comparison), *filter(None, [peak_chart(comparison)])]),
        Part("speed", "Speed", [chart for chart in speed if chart]),
        Part("schedule", "Schedule", [curves["lr"]] if "lr" in curves else []),
    ]
    return [part for part in all_parts if part.charts]


def first_and_rest(every: list[Part]) -> tuple[Chart | None, list[Part]]:
    """Return the chart of the first screen, quality against cost if there is one, and the parts without it."""
    first = next((part.charts[0] for part in every), None)
    rest = [replace(part, charts=[chart for chart in part.charts if chart is not first]) for part in every]
    return first, [part for part in rest if part.charts]


def write_page(comparison: Comparison, path: Path, command: str) -> None:
    """Write the report of a comparison.

    Args:
        comparison: the comparison to show.
        path: path of the HTML file.
        command: command that reproduces the page, for the footer.

    Raises:
        UserError: a package is missing, or the file cannot be written.
    """
    text = page(comparison, command)
    with writing("-o", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def page(comparison: Comparison, command: str) -> str:
    """Return the HTML page as text."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise UserError(MISSING.format("jinja2")) from error
    plotly, version = _plotly()
    script = (HERE / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    first, shown = first_and_rest(parts(comparison))
    found, notes = mistakes(comparison)
    return environment.get_template("page.html").render(
        comparison=comparison,
        answer=answer(comparison),
        counts=_counts(comparison),
        rows=rows(comparison),
        definition=definition,
        looks=[look(number) for number in range(len(comparison.groups))],
        colours=LIGHT,
        part_colours=PARTS_LIGHT,
        first=first,
        parts=shown,
        data=data_facts(comparison),
        mistakes=found,
        mistake_notes=notes,
        figures={c.name: {"data": c.data, "layout": c.layout} for c in _charts(first, shown)},
        main_columns=main_columns(comparison.figures),
        themes=themes(),
        sections=sections(comparison),
        glossary=_glossary(comparison),
        plain_title=plain_title,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        plotly=base64.b64encode(gzip.compress(plotly.encode(), mtime=0)).decode(),
        plotly_version=version,
        hashes=[_hash(script), _hash(plotly)],
        command=command,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )


def _charts(first: Chart | None, shown: list[Part]) -> list[Chart]:
    return [*([first] if first else []), *(chart for part in shown for chart in part.charts)]


def _plotly() -> tuple[str, str]:
    """Return plotly.js and its version."""
    try:
        from plotly.offline import get_plotlyjs, get_plotlyjs_version
    except ImportError as error:
        raise UserError(MISSING.format("plotly")) from error
    return get_plotlyjs(), get_plotlyjs_version()


def _hash(script: str) -> str:
    """Return the hash that allows a script in the content security policy of the page; other scripts do not run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _counts(comparison: Comparison) -> dict[str, Any]:
    runs = [run for group in comparison.groups for run in group.runs]
    failed = [run for group in comparison.groups for run in group.failed]
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    return {"groups": len(comparison.groups), "runs": len(runs), "failed": len(failed), "seeds": seeds}


def _glossary(comparison: Comparison) -> list[tuple[str, str]]:
    """Return (name, definition) of the record fields on the page, columns first."""
    columns = [figure.name for figure in comparison.figures if figure.name in FIELDS]
    more = [
        "memory_phases",
        "tracked_steps",
        "train_tokens_per_second",
        "step_split_seconds_p50",
        "validations",
        "status",
    ]
    return [(name, FIELDS[name]) for name in dict.fromkeys([*columns, *more])]
