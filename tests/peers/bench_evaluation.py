"""Compare the time of litpeft's benchmarks, which compute shared prefixes once, with lm-eval's HFLM, on one thread.

python -m tests.peers.bench_evaluation [--data_dir FOLDER] [--questions 100] [--model demo:smollm2]

Both score the same items of TruthfulQA (MC1 and MC2 in one call), or of generated arithmetic without --data_dir, on the
same model in fp32. Prints the processor time of both, their ratio, and the largest difference of their scores.
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ("mc1", "mc2") if arguments.data_dir else ("2ds", "4ds")
    tasks = [f"litpeft_{'truthfulqa' if arguments.data_dir else 'generated'}_{name}" for name in names]
    options = Options(tasks, limit=arguments.questions, data_dir=arguments.data_dir and str(arguments.data_dir))
    data = ArithmeticInstructions(tokenizer=arguments.model)
    task = CausalLM(arguments.model, LoRA(), dtype="fp32")
    task.build(data, torch.device("cpu"))
    suite = Suite(options, task, data)
    seconds, found = _timed(lambda: suite.evaluate(task, data, lambda *_: None, print))
    print(f"litpeft: {seconds:.1f} s", flush=True)
    lm_eval_tasks = {each.name: each.task for each in find(tasks, options)[0]}
    lm = HFLM(pretrained=task.backbone, tokenizer=data.tokenizer, batch_size=BATCH)
    hflm, expected = _timed(
        lambda: evaluate(lm, {"tasks": lm_eval_tasks}, limit=arguments.questions, bootstrap_iters=10)
    )
    print(f"lm-eval's HFLM, batches of {BATCH}: {hflm:.1f} s, {hflm / seconds:.1f} times as long")
    for name in tasks:
        ours, other = found.results[name], expected["results"][name]["acc,none"]
        items = zip(ours.per_item["acc"], (each["acc"] for each in expected["samples"][name]), strict=True)
        worst = max(abs(a - b) for a, b in items)
        print(f"{name}: {ours.scores['acc']:.6f} and {other:.6f}; the items differ by at most {worst:.1e}")


def _timed(work: Any) -> tuple[float, Any]:
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


if __name__ == "__main__":
    main()
