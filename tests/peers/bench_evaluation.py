"""How much faster benchmarks are by common beginnings computed once than by lm-eval's own HFLM, on one thread.

python -m tests.peers.bench_evaluation [--data_dir FOLDER] [--questions 100] [--model demo:smollm2]

Both score the same items of TruthfulQA (MC1 and MC2 in one call) on the same model in this process, in fp32; without
--data_dir, generated arithmetic. What each takes of the processor, the ratio, and how far their scores are apart.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from litpeft.adapters import LoRA
from litpeft.benchmarks import Options, Suite
from litpeft.benchmarks.harness import find
from litpeft.data import ArithmeticInstructions
from litpeft.tasks import CausalLM

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo:smollm2")
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--questions", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    names = ("mc1", "mc2") if asked.data_dir else ("2ds", "4ds")
    tasks = [f"litpeft_{'truthfulqa' if asked.data_dir else 'generated'}_{name}" for name in names]
    options = Options(tasks, limit=asked.questions, data_dir=asked.data_dir and str(asked.data_dir))
    data = ArithmeticInstructions(tokenizer=asked.model)
    task = CausalLM(asked.model, LoRA(), dtype="fp32")
    task.build(data, torch.device("cpu"))
    suite = Suite(options, task, data)
    ours, found = _timed(lambda: suite.evaluate(task, data, lambda *_: None, print))
    print(f"litpeft: {ours:.1f} s", flush=True)
    theirs = {each.name: each.task for each in find(tasks, options)[0]}
    lm = HFLM(pretrained=task.backbone, tokenizer=data.tokenizer, batch_size=BATCH)
    hflm, said = _timed(lambda: evaluate(lm, {"tasks": theirs}, limit=asked.questions, bootstrap_iters=10))
    print(f"lm-eval's HFLM, batches of {BATCH}: {hflm:.1f} s, {hflm / ours:.1f} times as long")
    for name in tasks:
        own, other = found.results[name], said["results"][name]["acc,none"]
        items = zip(own.per_item["acc"], (each["acc"] for each in said["samples"][name]), strict=True)
        worst = max(abs(a - b) for a, b in items)
        print(f"{name}: {own.scores['acc']:.6f} and {other:.6f}; items differ by {worst:.1e} at most")


def _timed(work: Any) -> tuple[float, Any]:
    begun = time.process_time()
    found = work()
    return time.process_time() - begun, found


if __name__ == "__main__":
    main()
