"""Run the matrix with a progress bar, and print a table: python -m tests.architectures [PART OF A NAME ...] [--write FILE]."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from tests.architectures.case import run_case
from tests.architectures.models import ADAPTERS, ARCHITECTURES, NO_ESTIMATE, NO_EXPORT, REFUSED, SPECIAL, VISION

TITLES = {  # figure -> title of its column
    "trained": "trained",
    "fp32": "step 0, fp32",
    "bf16": "step 0, bf16",
    "estimate": "estimate / run",
    "adapter": "PEFT, logits",
    "merged": "merged, logits",
}
Place = tuple[str, str]  # architecture, strategy
HEAD = """# Architectures

Tiny random models of {kinds} architectures of transformers with three strategies: LoRA on query and value, DoRA and QLoRA nf4 on all linear
layers. `make architectures` trains each for two steps and checks that

- the loss before training equals that of plain transformers, in fp32 (1e-5) and in bf16 (its rounding); for QLoRA with the weights that
  bitsandbytes rounds,
- every tensor of the adapter gets a gradient,
- an interrupted and resumed run ends with the same bits,
- `litpeft estimate` has the run's parameters and bytes, and its peak of the first step within 1 % (mixtures: 10 %),
- `litpeft predict` answers every row,
- PEFT loads the exported adapter, and transformers the merged model, with the logits of the trained model.

The vision encoders (the last ten of the table) are adapted from Python: step 0 in fp32, gradients, PEFT and merging only.

The columns are differences of losses, the estimated peak memory divided by the run's, and the largest differences of logits: of PEFT in fp32,
and of the merged model in bf16, where the run rounds more often.

"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.architectures")
    parser.add_argument(
        "parts", nargs="*", help="run only combinations whose name, such as llama-lora, has one of these"
    )
    parser.add_argument("--write", type=Path, help="write the table as Markdown")
    options = parser.parse_args(arguments)
    places = [(kind, adapter) for kind in [*ARCHITECTURES, *VISION] for adapter in ADAPTERS]
    places = [place for place in places if not options.parts or any(part in "-".join(place) for part in options.parts)]
    found = run_all(places)
    failed = [f"{' '.join(place)}: {reason}" for place in places if (reason := _fault(place, found[place]))]
    rows = [[*place, *_cells(place, found[place])] for place in places]
    table = Table(*("architecture", "strategy", *TITLES.values()), title="differences from transformers and PEFT")
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)
    kinds, refused = len({kind for kind, _ in places}), sum(place in REFUSED for place in places)
    print(
        f"{kinds} architectures, {len(places)} combinations, {refused} refused, {len(failed)} failed", *failed, sep="\n"
    )
    if options.write:
        options.write.write_text(HEAD.format(kinds=kinds) + _markdown(rows) + _exceptions(), encoding="utf-8")
    return bool(failed)


def run_all(places: list[Place]) -> dict[Place, dict[str, Any] | str]:
    """Check all combinations, one process per core; return the figures of each, or what failed."""
    found = {}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(run_case, *place): place for place in places}
        for done in tqdm(as_completed(waiting), total=len(places), unit="case"):
            place = waiting[done]
            found[place] = done.result()
            if reason := _fault(place, found[place]):
                tqdm.write(f"{' '.join(place)}: {reason[:400]}")
    return found


def _fault(place: Place, result: dict[str, Any] | str) -> str | None:
    """Return why a combination counts as failed; None if it works, or is refused as listed."""
    reason = REFUSED.get(place)
    if isinstance(result, str):
        return None if reason is not None and reason in result else result
    return None if reason is None else f"works, but is listed as refused: {reason}"


def _cells(place: Place, result: dict[str, Any] | str) -> list[str]:
    if isinstance(result, str):
        return ["refused" if place in REFUSED else "FAILED", *[""] * (len(TITLES) - 1)]
    formats = {"trained": "{:,}", "estimate": "{:.3f}"}
    values = {name: result.get(name) for name in TITLES}
    return ["" if v is None else formats.get(name, "{:.0e}").format(v) for name, v in values.items()]


def _markdown(rows: list[list[str]]) -> str:
    lines = [["architecture", "strategy", *TITLES.values()], ["---", "---", *["---:"] * len(TITLES)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _exceptions() -> str:
    """Return the sections about options and refusals."""
    special = [f"- `{kind}`, {adapter}: `{' '.join(options)}`" for (kind, adapter), options in SPECIAL.items()]
    refused = [f"- `{kind}`, {adapter}: {reason}" for (kind, adapter), reason in REFUSED.items()]
    exports = [
        f"- `{kind}`, {adapter}, `--format {form}`: {reason}" for (kind, adapter, form), reason in NO_EXPORT.items()
    ]
    estimates = [
        f"- `{kind}`: `litpeft estimate` refuses it; its forward pass depends on values" for kind in NO_ESTIMATE
    ]
    parts = {
        "Options that an architecture needs": [
            "Layers without the usual names, or that the model does not call.",
            *special,
        ],
        "Refused, each in a sentence": [*refused, *exports, *estimates],
    }
    return "".join(f"\n## {title}\n\n" + "\n".join(lines) + "\n" for title, lines in parts.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
