"""Kill runs at random points, resume them, and see whether they end as ones that were left alone: `make torture`.

Half of the kills come after a random time, half before a random one of the calls that change the run folder (opening a
file to write, mkdir, rename, remove, truncate, fsync), so that each window within a save is met. A run that is resumed
may be killed again.
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
OFTEN = "--checkpoint.every_n_steps 3"
PLATEAU = "--model.scheduler lightning.pytorch.cli.ReduceLROnPlateau --model.scheduler.monitor val_loss"
CYCLE = "--model.scheduler OneCycleLR --model.scheduler.max_lr 0.01 --model.optimizer torch.optim.AdamW"
ARITHMETIC = "--data ArithmeticInstructions --data.train_rows 60 --data.val_rows 12 --data.batch_size 4"
TEXT = "--data SST2 --data.train_file {train} --data.val_file {val} --data.batch_size 8"
BERT = f"--model SequenceClassification --model.model_name {{bert}} {TEXT}"
LLAMA = "--model CausalLM --model.model_name {llama}"
CASES = {  # an epoch of BERT has 12 batches
    "none, mid-epoch": f"{BERT} {OFTEN} --model.scheduler WarmupCosine",
    "lora, dropout, two workers": f"{BERT} {LORA} {OFTEN} --data.num_workers 2 --model.scheduler WarmupLinear",
    "dora, accumulation": f"{BERT} --model.adapter DoRA {OFTEN} --trainer.accumulate_grad_batches 2 {CYCLE}",
    "qlora-nf4, AdamW8bit": f"{BERT} --model.dtype bf16 --model.adapter QLoRA --model.adapter.dropout 0.1 {OFTEN} "
    "--model.optimizer bitsandbytes.optim.AdamW8bit --model.scheduler CosineAnnealingLR --model.scheduler.T_max -1",
    "qlora-fp4, plateau": f"{BERT} --model.adapter QLoRA --model.adapter.quant_type fp4 {OFTEN} {PLATEAU} "
    "--model.scheduler.patience 0 --model.scheduler.threshold 0.5 --trainer.max_epochs 3",
    "qdora-nf4, end of epochs": f"{BERT} --model.dtype bf16 --model.adapter QDoRA --model.scheduler WarmupInverseSqrt",
    "validation within accumulated batches": f"{BERT} {LORA} --trainer.val_check_interval 6 "
    "--trainer.accumulate_grad_batches 4 --checkpoint.every_n_steps 2",
    "max_steps, keep best": f"{BERT} {LORA} {OFTEN} --trainer.max_steps 20 --trainer.max_epochs -1 --checkpoint.keep best "
    "--model.optimizer torch.optim.SGD --model.optimizer.lr 0.1 --model.optimizer.momentum 0.9",
    "causal lm, packing": f"{LLAMA} {ARITHMETIC} --data.packing true {LORA} {OFTEN} --data.max_length 128 "
    "--model.optimizer bitsandbytes.optim.PagedAdamW8bit --trainer.accumulate_grad_batches 2",
    "frozen, Lion8bit": f"{BERT} --model.adapter Frozen {OFTEN} --model.optimizer bitsandbytes.optim.Lion8bit "
    "--model.scheduler Constant --model.scheduler.warmup 5 --trainer.max_epochs 3 --trainer.check_val_every_n_epoch 2",
}
SAME = "--trainer.accelerator {accelerator} --trainer.enable_progress_bar false --trainer.log_every_n_steps 1 "
SAME += "--trainer.max_epochs 2"


@dataclass
class Count:
    """What became of the runs of a case."""

    runs: int = 0
    kills: int = 0
    resumes: int = 0
    afresh: int = 0  # killed before there was a checkpoint
    identical: int = 0
    wrong: list[str] = field(default_factory=list)


class Torture:
    """Cases in a folder of their own.

    Args:
        folder: for the runs.
        seed: of the points at which they are killed.
        accelerator: Lightning's name of it.
    """

    def __init__(self, folder: Path, seed: int, accelerator: str = "cpu") -> None:
        self.folder, self.draw = folder, random.Random(seed)
        for name in ("bert", "llama"):
            (folder / name).mkdir(parents=True)
        bert = write_tiny_bert(folder / "bert")
        self.given = {"bert": bert, "llama": write_tiny_llama(folder / "llama", bert)}
        self.given["accelerator"] = accelerator
        self.given["train"] = write_sentences(folder / "train.tsv", 96)
        self.given["val"] = write_sentences(folder / "val.tsv", 32, seed=1)
        self.whole: dict[str, tuple[int, float]] = {}  # calls and seconds of the run that nobody kills

    def words(self, case: str, run_dir: Path, *more: str) -> list[str]:
        return ["fit", *f"{SAME} {CASES[case]}".format(**self.given).split(), "--run_dir", str(run_dir), *more]

    def place(self, case: str, name: str) -> Path:
        return self.folder / f"{case.replace(' ', '_').replace(',', '')}-{name}"

    def leave_alone(self, case: str, times: int = 2) -> None:
        """The run that the others are held against; the second time is how long one takes whose tables are made."""
        whole, log = self.place(case, "whole"), self.folder / "log"
        for _ in range(times):
            shutil.rmtree(whole, ignore_errors=True)
            begun = time.monotonic()
            if run(self.words(case, whole), log, cache=self.folder / "cache"):
                raise SystemExit(f"{case}: {log.read_text()}")
        self.whole[case] = int(log.with_suffix(".calls").read_text()), time.monotonic() - begun

    def kill(self, case: str, count: Count, most: int) -> None:
        """One run, killed, resumed and killed again until it ends or `most` kills are reached; then it is left alone."""
        if case not in self.whole:
            self.leave_alone(case)
        run_dir, log = self.place(case, "killed"), self.folder / "log"
        shutil.rmtree(run_dir, ignore_errors=True)
        points: list[str] = []
        while True:
            more = []
            if newest_checkpoint(run_dir) is not None:
                more, count.resumes = ["--resume"], count.resumes + 1
            elif points:
                more, count.afresh = ["--overwrite"], count.afresh + 1
            words = self.words(case, run_dir, *more)
            code, point = self._one(words, log, *self.whole[case], alone=count.kills >= most)
            if code != -signal.SIGKILL:
                break
            count.kills += 1
            points.append(point)
            if (run_dir / FILE_NAME).is_file() and read_record(run_dir)["status"] == "ok":  # killed when all was done
                code = 0
                break
        count.runs += 1
        wrong = [log.read_text()] if code else differences(self.place(case, "whole"), run_dir)
        left = [path.name for path in run_dir.rglob(".*") if path.name != LOCK]
        wrong += [f"left: {left}"] if left else []
        count.identical += not wrong
        if wrong:
            count.wrong.append(f"{case}, killed at {', '.join(points)}: {'; '.join(wrong)[:2000]}")
            shutil.copytree(run_dir, self.place(case, f"wrong{len(count.wrong)}"))

    def _one(self, words: list[str], log: Path, calls: int, seconds: float, alone: bool) -> tuple[int, str]:
        cache = self.folder / "cache"
        if alone:
            return run(words, log, cache=cache), ""
        if self.draw.random() < 0.5:
            call = self.draw.randint(1, int(1.05 * calls))
            return run(words, log, call, cache), f"call {call}"
        process, after = start(words, log, cache=cache), self.draw.uniform(0.3, 1.0) * seconds
        process.join(after)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        return process.exitcode, f"{after:.2f} s"

    def fill(self, case: str, call: int) -> str:
        """What is wrong with a run whose disk is full from this call on, and that goes on once there is room."""
        if case not in self.whole:
            self.leave_alone(case)
        run_dir, log, cache = self.place(case, "full"), self.folder / "log", self.folder / "cache"
        shutil.rmtree(run_dir, ignore_errors=True)
        code, said = run(self.words(case, run_dir), log, cache=cache, full_at=call), log.read_text()
        if code not in (1, 2) or "Traceback" in said or not said.rstrip().endswith(": No space left on device."):
            return f"exit code {code}: {said}"
        if broken := [str(path) for path in checkpoints(run_dir) if damage(path)]:
            return f"damaged: {broken}"
        if (run_dir / FILE_NAME).is_file() and read_record(run_dir)["status"] == "ok":  # it was full when all was done
            return ""
        more = ["--resume"] if newest_checkpoint(run_dir) else ["--overwrite"]
        if run(self.words(case, run_dir, *more), log, cache=cache):
            return f"{more}: {log.read_text()}"
        return "; ".join(differences(self.place(case, "whole"), run_dir))


def fill_disks(folder: Path, case: str, every: int) -> bool:
    """Whether a run loses nothing from whichever of its calls on the disk is full; looks at one call of so many."""
    work, wrong = Torture(folder, 0), {}
    work.leave_alone(case)
    calls = range(1, work.whole[case][0] + 1, every)
    for call in calls:
        if told := work.fill(case, call):
            wrong[call] = told
            print(f"full from call {call} on: {told[-1500:]}", flush=True)
    print(f"{case}: disk full from each of {len(calls)} calls on (of {calls.stop - 1}), {len(wrong)} wrong")
    return not wrong


def torture(folder: Path, kills: int, seed: int, cases: list[str], accelerator: str = "cpu") -> bool:
    """Whether all that were killed ended as those that were not; a table of it on the way."""
    work, counts = Torture(folder, seed, accelerator), {case: Count() for case in cases}
    print(f"{'case':40} {'runs':>5} {'kills':>6} {'resumes':>8} {'afresh':>7} {'bit-identical':>14}")
    for i, case in enumerate(cases):
        count, share = counts[case], kills * (i + 1) // len(cases) - kills * i // len(cases)
        while count.kills < share:
            work.kill(case, count, share)
        print(f"{case:40} {_row(count)}", flush=True)
    every = [
        getattr(count, name)
        for name in ("runs", "kills", "resumes", "afresh", "identical")
        for count in counts.values()
    ]
    total = Count(*(sum(every[i : i + len(counts)]) for i in range(0, len(every), len(counts))))
    print(f"{'all':40} {_row(total)}")
    for wrong in (wrong for count in counts.values() for wrong in count.wrong):
        print(wrong)
    return total.runs == total.identical


def _row(count: Count) -> str:
    return (
        f"{count.runs:5} {count.kills:6} {count.resumes:8} {count.afresh:7} {f'{count.identical} of {count.runs}':>14}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the points at which runs are killed")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; may be given again")
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu", help="cuda needs a GPU")
    parser.add_argument("--fill", type=int, metavar="N", help="fill the disk from each Nth call on instead")
    parser.add_argument("--folder", type=Path, help="for the runs, kept; by default one that is removed")
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
