"""Run each method of PEFT's registry on two tiny models, and write what works: python -m tests.adapters.methods_table --write FILE."""

from __future__ import annotations

import argparse
import re
import signal
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
from tqdm import tqdm

from litpeft.adapters.peft_options import REFUSED
from litpeft.commands.estimate import Plan
from tests.adapters.peft_cases import METHODS, Case, run
from tests.conftest import write_tiny_bert, write_tiny_llama

DIFFER = re.compile(r"logits differ (?:from the trained model.s )?by at most (\S+?)[;:]?\s")
HEAD = """# Methods of PEFT

Every method in the registry of PEFT {version}, each as `--model.adapter Peft --model.adapter.method NAME`. `make methods` trains each
for four steps on a tiny random BERT (a classifier) and a tiny random Llama (a language model), and checks

- *resumed*: a run interrupted after two steps and resumed ends with the same bits,
- *exported*: PEFT loads the exported adapter; the largest difference of its logits from the trained model's,
- *merged*: transformers loads the merged model; the largest difference of its logits,
- *estimate*: the peak of the first step by `litpeft estimate`, divided by the run's,
- *predicts*: `litpeft predict` answers every row.

`tests/adapters/test_peft_registry.py` also compares gradients and parameter counts with PEFT's own model, and fails when a new version of PEFT
adds a method. "no" stands where PEFT or litpeft refuses with a sentence; these are below the table.

| method | model | trained parameters | resumed | exported | merged | estimate | predicts |
| --- | --- | ---: | --- | ---: | ---: | ---: | --- |
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.adapters.methods_table")
    parser.add_argument("methods", nargs="*", help="only these methods")
    parser.add_argument("--write", type=Path, help="write the table as Markdown")
    options = parser.parse_args(arguments)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs ignore it; interruptions send it
    lines, reasons = [], []
    with tempfile.TemporaryDirectory() as folder:
        (bert := Path(folder) / "bert").mkdir()
        (llama := Path(folder) / "llama").mkdir()
        models = {"bert": write_tiny_bert(bert), "llama": write_tiny_llama(llama, str(bert))}
        for method in tqdm(options.methods or METHODS):
            for kind, model in models.items():
                case = Case(method, kind, model, Path(folder) / f"{method}-{kind}")
                cells, refused = measured(case)
                lines.append(f"| `{method}` | {kind} | {' | '.join(cells)} |")
                reasons += [f"- `{method}`, {kind}: {reason}" for reason in refused]
    refusals = [f"- `{method}`: {reason}." for method, reason in sorted(REFUSED.items())]
    text = HEAD.format(version=peft.__version__) + "\n".join(lines)
    text += "\n\n## Refused on one model, or not exported, merged or estimated\n\n" + "\n".join(reasons)
    text += "\n\n## Refused methods\n\n" + "\n".join(refusals) + "\n"
    options.write.write_text(text) if options.write else print(text)


def measured(case: Case) -> tuple[list[str], list[str]]:
    """Return the cells of a method's row on one model, and the sentences with which something was refused."""
    if error := case.fit("run"):
        return ["refused", *5 * [""]], [said(error)]
    record, refused = case.record(), []
    for error in (case.fit("part", stop=2), case.fit("part", "--resume")):
        if error:
            raise SystemExit(f"{case.method}, {case.kind}: the interrupted run failed: {error}")
    whole, resumed = case.weights(), case.weights("part")
    same = whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    cells = [f"{record['trainable_params']:,}", "same bits" if same else "DIFFERS"]
    for form in ("adapter", "merged"):
        output, error = case.export(form)
        found = DIFFER.search(output)
        cells.append(f"{float(found[1]):.1g}" if found else "no")
        refused += [] if found else [said(error)]
    ratio, error = estimated(case, record)
    cells.append(f"{ratio:.3f}" if ratio else "no")
    refused += [said(error)] if error else []
    rows = str(next(case.folder.glob("rows.*")))
    words = ["--run_dir", str(case.folder / "run"), "--trainer.enable_progress_bar", "false"]
    error = run("predict", *words, "--data.predict_file", rows)[1]
    return [*cells, "no" if error else "yes"], refused + ([said(error)] if error else [])


def estimated(case: Case, record: dict[str, Any]) -> tuple[float | None, str]:
    """Return the estimated peak of the first step divided by the run's, or the sentence that refuses the estimate."""
    arguments = [*case.arguments, "--device", "cpu"]
    if error := run("estimate", *arguments)[1]:
        return None, error
    plan = Plan(arguments)
    peak = plan.trace(plan.task.adapter).phases["first_step"].tensors.bytes
    return peak / record["memory_phases"]["first_step"]["peak_tensor_bytes"], ""


def said(error: str) -> str:
    """Return a sentence of an error without the name of the program and without this machine's paths."""
    return re.sub(r"/\S+/", "", error.removeprefix("litpeft: error: ").strip().splitlines()[-1])


if __name__ == "__main__":
    main()
