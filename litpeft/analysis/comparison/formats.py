"""Write a comparison as Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from litpeft.analysis.comparison.answer import answer
from litpeft.analysis.comparison.figures import value
from litpeft.analysis.comparison.results import Comparison, Group
from litpeft.analysis.comparison.tables import Table, alarms, differences_table, figures_table, notes

LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": "$<$", ">": "$>$", "±": r"$\pm$", "\N{MINUS SIGN}": "$-$", "≥": r"$\geq$", "≤": r"$\leq$", "—": "---"},
}
MARKDOWN = re.compile(r"[\\`*_{}\[\]<>|#~&]")


def markdown(comparison: Comparison) -> str:
    """Return Markdown: warnings as quotations, tables, notes."""
    parts = [f"## {_markdown(comparison.title)}"]
    if comparison.question:
        parts.append(_markdown(comparison.question))
    parts += [f"> **Warning.** {_markdown(sentence)}" for sentence in alarms(comparison)]
    parts += [f"**{_markdown(sentence)}**" for sentence in answer(comparison).first]
    parts += [_markdown_table(table) for table in _tables(comparison)]
    parts += [_markdown(sentence) for sentence in notes(comparison)]
    return "\n\n".join(parts) + "\n"


def latex(comparison: Comparison) -> str:
    """Return LaTeX tabulars (booktabs), with warnings and notes as comments."""
    parts = [_comment(f"{comparison.title}. {comparison.question or ''}")]
    parts += [_comment(f"Warning: {sentence}") for sentence in alarms(comparison)]
    parts += [_comment(sentence) for sentence in answer(comparison).first]
    parts += [_latex_table(table) for table in _tables(comparison)]
    parts += [_comment(sentence) for sentence in notes(comparison)]
    return "\n".join(parts) + "\n"


def csv(comparison: Comparison) -> str:
    """Return CSV: one row per group and per published row, in raw units; unknown values are empty."""
    rows: list[dict[str, Any]] = []
    for group in comparison.groups:
        row = {"label": group.label, "source": "measured"} | {f"axis_{axis}": item for axis, item in group.axes.items()}
        row |= {"seeds": len(group.runs), "failed": len(group.failed)}
        rows.append(
            row | {key: item for figure in comparison.figures for key, item in _cells(group, figure.name).items()}
        )
    for other in (comparison.published or {}).get("rows") or ():
        known = {
            f"{each.name}_mean": other[each.name] for each in comparison.figures if other.get(each.name) is not None
        }
        rows.append({"label": other["label"], "source": "published"} | known)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv_module.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def json(comparison: Comparison) -> str:
    """Return JSON with all results in raw units, and the folder and figures of each run; unknown values are null."""
    whole = {key: item for key, item in vars(comparison).items() if key not in ("figures", "groups")}
    whole["answer"] = asdict(answer(comparison))
    whole["tuned"] = {label: tuned.as_dict() for label, tuned in comparison.tuned.items()}
    whole["figures"] = [asdict(figure) for figure in comparison.figures]
    whole["groups"] = [_group(group, comparison) for group in comparison.groups]
    return json_module.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


FORMATS: dict[str, Callable[[Comparison], str]] = {"markdown": markdown, "csv": csv, "json": json, "latex": latex}


def _tables(comparison: Comparison) -> list[Table]:
    differences = differences_table(comparison)
    return [figures_table(comparison), *([differences] if differences else [])]


def _cells(group: Group, name: str) -> dict[str, Any]:
    """Return the CSV cells of one figure; every group has the same columns."""
    mean, seeds, rows = group.estimates.get(name), group.differences.get(name), group.over_examples.get(name)
    cells = {f"{name}_{key}": getattr(mean, key, None) for key in ("mean", "low", "high", "count")}
    for prefix, found in (("difference", seeds), ("examples", rows)):
        cells |= {f"{name}_{prefix}": getattr(found, "mean", None)}
        cells |= {
            f"{name}_{prefix}_{key}": getattr(found, key, None) for key in ("low", "high", "pairs", "p", "p_holm")
        }
    shown = rows if rows and (seeds is None or seeds.test is None) else seeds
    return cells | {
        f"{name}_verdict": getattr(shown, "verdict", None),
        f"{name}_test": getattr(shown, "test", None),
        f"{name}_margin": getattr(shown, "margin", None),
        f"{name}_seeds_needed": getattr(seeds, "seeds_needed", None),
        f"{name}_seeds_for_margin": getattr(seeds, "seeds_for_margin", None),
    }


def _group(group: Group, comparison: Comparison) -> dict[str, Any]:
    """Return a group for JSON, without the run records, which are large."""
    names = [figure.name for figure in comparison.figures]
    runs = {
        kind: [
            {
                "folder": str(run.folder),
                "seed": run.seed,
                "status": run.record.get("status"),
                "error": run.record.get("error"),
                "figures": {name: value(run.record, name) for name in names},
            }
            for run in members
        ]
        for kind, members in (("runs", group.runs), ("failed", group.failed))
    }
    figures = {
        kind: {name: asdict(found[name]) if name in found else None for name in names}
        for kind, found in (
            ("estimates", group.estimates),
            ("differences", group.differences),
            ("over_examples", group.over_examples),
        )
    }
    return {"label": group.label, "axes": group.axes, **runs, **figures}


def _markdown(text: str) -> str:
    return MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))


def _markdown_table(table: Table) -> str:
    lines = [table.headings, ["---", *["---:"] * (len(table.headings) - 1)]]
    rows = [f"| {' | '.join(map(_markdown, row))} |" for row in (lines[0], *table.rows)]
    title = table.title[:1].upper() + table.title[1:]
    return "\n".join([f"{_markdown(title)}:", "", rows[0], f"| {' | '.join(lines[1])} |", *rows[1:]])


def _latex(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in " ".join(text.split()))


def _comment(text: str) -> str:
    return f"% {' '.join(text.split())}"


def _latex_table(table: Table) -> str:
    head, *rows = (" & ".join(map(_latex, row)) + r" \\" for row in (table.headings, *table.rows))
    begin = rf"\begin{{tabular}}{{l{'r' * (len(table.headings) - 1)}}}"
    lines = [begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([_comment(table.title), *lines])
