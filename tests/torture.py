"""Kill runs at random points, resume them, and check that the results equal uninterrupted runs: `make torture`.

Half of the kills come after a random time, half before a random call that changes the run folder (opening a file to
write, mkdir, rename, remove, truncate, fsync), so that kills also happen during saves. A resumed run may be killed
again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from litpeft.runs.atomic_write import damage
from litpeft.runs.folder import checkpoints, newest_checkpoint
from litpeft.runs.lock import LOCK
from litpeft.runs.record import FILE_NAME, read_record
from tests.conftest import write_sentences, write_tiny_bert, write_tiny_llama
from tests.resuming import differences, run, start

LORA = "--model.adapter LoRA --model.adapter.dropout 0.2"
EVERY_3_STEPS = "--checkpoint.every_n_steps 3"
PLATEAU = "--model.scheduler lightning.pytorch.cli.ReduceLROnPlateau --model.scheduler.monitor val_loss"
CYCLE = "--model.scheduler OneCycleLR --model.scheduler.max_lr 0.01 --model.optimizer torch.optim.AdamW"
ARITHMETIC = "--data ArithmeticInstructions --data.train_rows 60 --data.val_rows 12 --data.batch_size 4"
TEXT = "--data SST2 --data.train_file {train} --data.val_file {val} --data.batch_size 8"
BERT = f"--model SequenceClassification --model.model_name {{bert}} {TEXT}"
LLAMA = "--model CausalLM --model.model_name {llama}"
STREAM = f"--data.streaming true {EVERY_3_STEPS} --trainer.max_epochs -1"
CASES = {  # an epoch of BERT has 12 batches
    "none, mid-epoch": f"{BERT} {EVERY_3_STEPS} --model.scheduler WarmupCosine",
    "lora, dropout, two workers": f"{BERT} {LORA} {EVERY_3_STEPS} --data.num_workers 2 --model.scheduler WarmupLinear",
    "dora, accumulation": f"{BERT} --model.adapter DoRA {EVERY_3_STEPS} --trainer.accumulate_grad_batches 2 {CYCLE}",
    "qlora-nf4, AdamW8bit": f"{BERT} --model.dtype bf16 --model.adapter QLoRA --model.adapter.dropout 0.1 {EVERY_3_STEPS} "
    "--model.optimizer bitsandbytes.optim.AdamW8bit --model.scheduler CosineAnnealingLR --model.scheduler.T_max -1",
    "qlora-fp4, plateau": f"{BERT} --model.adapter QLoRA --model.adapter.quant_type fp4 {EVERY_3_STEPS} {PLATEAU} "
    "--model.scheduler.patience 0 --model.scheduler.threshold 0.5 --trainer.max_epochs 3",
    "qdora-nf4, end of epochs": f"{BERT} --model.dtype bf16 --model.adapter QDoRA --model.scheduler WarmupInverseSqrt",
    "validation within accumulated batches": f"{BERT} {LORA} --trainer.val_check_interval 6 "
    "--trainer.accumulate_grad_batches 4 --checkpoint.every_n_steps 2",
    "max_steps, keep best": f"{BERT} {LORA} {EVERY_3_STEPS} --trainer.max_steps 20 --trainer.max_epochs -1 --checkpoint.keep best "
    "--model.optimizer torch.optim.SGD --model.optimizer.lr 0.1 --model.optimizer.momentum 0.9",
    "causal lm, packing": f"{LLAMA} {ARITHMETIC} --data.packing true {LORA} {EVERY_3_STEPS} --data.max_length 128 "
    "--model.optimizer bitsandbytes.optim.PagedAdamW8bit --trainer.accumulate_grad_batches 2",
    "stream, two workers": f"{BERT} {LORA} {STREAM} --data.shuffle_buffer 40 --data.num_workers 2 --trainer.max_steps 25 "
    "--trainer.val_check_interval 0.4 --model.scheduler WarmupCosine",
    "stream, packing, accumulation": f"{LLAMA} --data Text --data.train_file {{train}} --data.text_column sentence "
    f"--data.max_length 64 --data.batch_size 2 {LORA} {STREAM} --data.shuffle_buffer 30 --data.val_samples 20 "
    "--trainer.max_steps 13 --trainer.accumulate_grad_batches 2",
    "frozen, Lion8bit": f"{BERT} --model.adapter Frozen {EVERY_3_STEPS} --model.optimizer bitsandbytes.optim.Lion8bit "
    "--model.scheduler Constant --model.scheduler.warmup 5 --trainer.max_epochs 3 --trainer.check_val_every_n_epoch 2",
}
COMMON = "--trainer.accelerator {accelerator} --trainer.enable_progress_bar false --trainer.log_every_n_steps 1 "
COMMON += "--trainer.max_epochs 2"


@dataclass
class Count:
    """Counts of the runs of a case."""

    runs: int = 0
    kills: int = 0
    resumes: int = 0
    restarts: int = 0  # killed before there was a checkpoint
    identical: int = 0
    wrong: list[str] = field(default_factory=list)


class Torture:
    """Run, kill and resume the cases.

    Args:
        folder: a new folder for the runs.
        seed: random seed of the kill points.
        accelerator: Lightning's name of the accelerator.
    """

    def __init__(self, folder: Path, seed: int, accelerator: str = "cpu") -> None:
        self.folder, self.draw = folder, random.Random(seed)
        for name in ("bert", "llama"):
            (folder / name).mkdir(parents=True)
        bert = write_tiny_bert(folder / "bert")
        self.values = {"bert": bert, "llama": write_tiny_llama(folder / "llama", bert)}
        self.values["accelerator"] = accelerator
        self.values["train"] = write_sentences(folder / "train.tsv", 96)
        self.values["val"] = write_sentences(folder / "val.tsv", 32, seed=1)
        self.references: dict[str, tuple[int, float]] = {}  # calls and seconds of the uninterrupted run

    def arguments(self, case: str, run_dir: Path, *more: str) -> list[str]:
        return ["fit", *f"{COMMON} {CASES[case]}".format(**self.values).split(), "--run_dir", str(run_dir), *more]

    def folder_of(self, case: str, name: str) -> Path:
        return self.folder / f"{case.replace(' ', '_').replace(',', '')}-{name}"

    def run_reference(self, case: str, times: int = 2) -> None:
        """Run a case without a kill; the time of the second run excludes building the tables."""
        reference, log = self.folder_of(case, "reference"), self.folder / "log"
        for _ in range(times):
            shutil.rmtree(reference, ignore_errors=True)
            started = time.monotonic()
            if run(self.arguments(case, reference), log, cache=self.folder / "cache"):
                raise SystemExit(f"{case}: {log.read_text()}")
        self.references[case] = int(log.with_suffix(".calls").read_text()), time.monotonic() - started

    def kill(self, case: str, count: Count, max_kills: int) -> None:
        """Kill and resume one run until it ends; after `max_kills` kills of the case it is not killed again."""
        if case not in self.references:
            self.run_reference(case)
        run_dir, log = self.folder_of(case, "killed"), self.folder / "log"
        shutil.rmtree(run_dir, ignore_errors=True)
        points: list[str] = []
        while True:
            more = []
            if newest_checkpoint(run_dir) is not None:
                more, count.resumes = ["--resume"], count.resumes + 1
            elif points:
                more, count.restarts = ["--overwrite"], count.restarts + 1
            arguments = self.arguments(case, run_dir, *more)
            code, point = self._run_once(arguments, log, *self.references[case], kill=count.kills < max_kills)
            if code != -signal.SIGKILL:
                break
            count.kills += 1
            points.append(point)
            # killed after the run had finished
            if (run_dir / FILE_NAME).is_file() and read_record(run_dir)["status"] == "ok":
                code = 0
                break
        count.runs += 1
        wrong = [log.read_text()] if code else differences(self.folder_of(case, "reference"), run_dir)
        leftovers = [path.name for path in run_dir.rglob(".*") if path.name != LOCK]
        wrong += [f"left: {leftovers}"] if leftovers else []
        count.identical += not wrong
        if wrong:
            count.wrong.append(f"{case}, killed at {', '.join(points)}: {'; '.join(wrong)[:2000]}")
            shutil.copytree(run_dir, self.folder_of(case, f"wrong{len(count.wrong)}"))

    def _run_once(self, arguments: list[str], log: Path, calls: int, seconds: float, kill: bool) -> tuple[int, str]:
        cache = self.folder / "cache"
        if not kill:
            return run(arguments, log, cache=cache), ""
        if self.draw.random() < 0.5:
            call = self.draw.randint(1, int(1.05 * calls))
            return run(arguments, log, call, cache), f"call {call}"
        process, after = start(arguments, log, cache=cache), self.draw.uniform(0.3, 1.0) * seconds
        process.join(after)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        return process.exitcode, f"{after:.2f} s"

    def fill(self, case: str, call: int) -> str:
        """Run a case with a disk that is full from a call on, then resume it with space; return what went wrong."""
        if case not in self.references:
            self.run_reference(case)
        run_dir, log, cache = self.folder_of(case, "full"), self.folder / "log", self.folder / "cache"
        shutil.rmtree(run_dir, ignore_errors=True)
        code, output = run(self.arguments(case, run_dir), log, cache=cache, full_at=call), log.read_text()
        if code not in (1, 2) or "Traceback" in output or not output.rstrip().endswith(": No space left on device."):
            return f"exit code {code}: {output}"
        if broken := [str(path) for path in checkpoints(run_dir) if damage(path)]:
            return f"damaged: {broken}"
        # the disk was full after the run had finished
        if (run_dir / FILE_NAME).is_file() and read_record(run_dir)["status"] == "ok":
            return ""
        more = ["--resume"] if newest_checkpoint(run_dir) else ["--overwrite"]
        if run(self.arguments(case, run_dir, *more), log, cache=cache):
            return f"{more}: {log.read_text()}"
        return "; ".join(differences(self.folder_of(case, "reference"), run_dir))


def fill_disks(folder: Path, case: str, every: int) -> bool:
    """Fill the disk from each `every`-th call on; return whether no run lost anything."""
    work, wrong = Torture(folder, 0), {}
    work.run_reference(case)
    calls = range(1, work.references[case][0] + 1, every)
    for call in calls:
        if failure := work.fill(case, call):
            wrong[call] = failure
            print(f"full from call {call} on: {failure[-1500:]}", flush=True)
    print(f"{case}: disk full from each of {len(calls)} calls on (of {calls.stop - 1}), {len(wrong)} wrong")
    return not wrong


def torture(folder: Path, kills: int, seed: int, cases: list[str], accelerator: str = "cpu") -> bool:
    """Print a table of the cases; return whether all killed runs ended like the uninterrupted runs."""
    work, counts = Torture(folder, seed, accelerator), {case: Count() for case in cases}
    print(f"{'case':40} {'runs':>5} {'kills':>6} {'resumes':>8} {'restarts':>8} {'bit-identical':>14}")
    for i, case in enumerate(cases):
        count, share = counts[case], kills * (i + 1) // len(cases) - kills * i // len(cases)
        while count.kills < share:
            work.kill(case, count, share)
        print(f"{case:40} {_row(count)}", flush=True)
    counted = [
        getattr(count, name)
        for name in ("runs", "kills", "resumes", "restarts", "identical")
        for count in counts.values()
    ]
    total = Count(*(sum(counted[i : i + len(counts)]) for i in range(0, len(counted), len(counts))))
    print(f"{'all':40} {_row(total)}")
    for wrong in (wrong for count in counts.values() for wrong in count.wrong):
        print(wrong)
    return total.runs == total.identical


def _row(count: Count) -> str:
    return f"{count.runs:5} {count.kills:6} {count.resumes:8} {count.restarts:8} {f'{count.identical} of {count.runs}':>14}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="random seed of the kill points")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case; can be repeated")
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu", help="cuda needs a GPU")
    parser.add_argument("--fill", type=int, metavar="N", help="instead of killing, fill the disk from each Nth call on")
    parser.add_argument("--folder", type=Path, help="folder for the runs, kept afterwards; by default a temporary one")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="torture-"))
    cases = options.case or list(CASES)
    try:
        if options.fill:
            return 0 if all(fill_disks(folder / str(i), case, options.fill) for i, case in enumerate(cases)) else 1
        return 0 if torture(folder, options.kills, options.seed, cases, options.accelerator) else 1
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
