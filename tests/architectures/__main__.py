"""Run the whole matrix with a progress bar, and print a table: python -m tests.architectures [PART OF A NAME ...]."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from tests.architectures.case import run_case
from tests.architectures.models import ADAPTERS, ARCHITECTURES, REFUSED, VISION

COLUMNS = ("fp32", "bf16", "estimate", "adapter", "merged")
TITLES = ("step 0, fp32", "step 0, bf16", "estimate / run", "PEFT, logits", "merged, logits")


def main(parts: list[str]) -> int:
    places = [(kind, adapter) for kind in [*ARCHITECTURES, *VISION] for adapter in ADAPTERS]
    places = [place for place in places if not parts or any(part in "-".join(place) for part in parts)]
    found = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        waiting = {pool.submit(run_case, *place): place for place in places}
        for done in tqdm(as_completed(waiting), total=len(places), unit="case"):
            place = waiting[done]
            found[place] = done.result()
            if isinstance(found[place], str) and place not in REFUSED:
                tqdm.write(f"{' '.join(place)}: {found[place][:400]}")
    table = Table(title="largest differences from plain transformers and PEFT", title_justify="left")
    for title in ("architecture", "strategy", "trained", *TITLES):
        table.add_column(title, justify="left" if title in ("architecture", "strategy") else "right")
    failed = []
    for place in places:
        result, reason = found[place], REFUSED.get(place)
        if isinstance(result, str):
            if reason is None or reason not in result:
                failed.append(f"{' '.join(place)}: {result}")
            table.add_row(*place, "refused" if reason else "FAILED")
        elif reason is not None:
            failed.append(f"{' '.join(place)} works, but is listed as refused: {reason}")
        else:
            cells = ["" if result.get(name) is None else f"{result[name]:.1e}" for name in COLUMNS]
            cells[2] = f"{result['estimate']:.3f}" if result.get("estimate") else ""
            table.add_row(*place, f"{result['trained']:,}", *cells)
    Console(width=120).print(table)
    refused = sum(place in REFUSED for place in places)
    print(f"{len({kind for kind, _ in places})} architectures, {len(places)} combinations, {refused} refused", end="; ")
    print(f"{len(failed)} failed", *failed, sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
