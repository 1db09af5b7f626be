"""The folder in which fuzzed command lines run: tiny models, tables, a finished run, runs to compare, an experiment."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import yaml

from litpeft.__main__ import main
from tests.analysis.comparison.build import write_run
from tests.conftest import write_sentences, write_tiny_bert, write_tiny_llama

CPU = {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false", "trainer.max_steps": "1"}
CLASSIFY = {
    **{"model": "SequenceClassification", "model.model_name": "bert", "model.dtype": "fp32"},
    **{"data": "SST2", "data.train_file": "train.tsv", "data.val_file": "val.tsv", "data.batch_size": "4"},
    **CPU,
}
WRITE = {
    **{"model": "CausalLM", "model.model_name": "llama", "model.dtype": "bf16", "data": "ArithmeticInstructions"},
    **{"data.train_rows": "8", "data.val_rows": "4", "data.batch_size": "4"},
    **CPU,
}
ANSWER = {**WRITE, "data": "Alpaca", "data.train_file": "alpaca.jsonl"}
del ANSWER["data.train_rows"], ANSWER["data.val_rows"]
CHAT = {**ANSWER, "data": "Conversations", "data.train_file": "chat.jsonl", "data.template": "chatml"}
PROSE = {**ANSWER, "data": "Text", "data.train_file": "text.txt", "data.documents": "line", "data.max_length": "32"}
PAIRS = {**CLASSIFY, "data": "TextClassification", "data.train_file": "pairs.csv", "data.text_column": "[a,b]"}
del PAIRS["data.val_file"]
LORA = {"model.adapter": "LoRA", "model.adapter.rank": "2", "model.adapter.dropout": "0.1"}
QLORA = {"model.adapter": "QLoRA", "model.adapter.quant_type": "fp4", "model.adapter.targets": "[query,value]"}
ADAMW = {"model.optimizer": "torch.optim.AdamW", "model.optimizer.lr": "1e-3", "model.optimizer.weight_decay": "0.1"}
COSINE = {"model.scheduler": "WarmupCosine", "model.scheduler.warmup": "0.1"}
LINES = [  # each is valid
    CLASSIFY,
    CLASSIFY | LORA,
    CLASSIFY | LORA | ADAMW | COSINE,
    CLASSIFY | QLORA | ADAMW,
    CLASSIFY | {"model.adapter": "DoRA", "model.adapter.init": "gaussian", "checkpoint.every_n_steps": "1"},
    WRITE | {"model.adapter": "LoRA", "model.adapter.targets": "all-linear"} | COSINE,
    CHAT | {"model.adapter": "LoRA", "data.train_on": "last", "data.long_rows": "drop", "data.on_bad_row": "skip"},
    PROSE | LORA,
    PAIRS | LORA | {"data.val_cut": "stratified", "model.class_weights": "balanced", "model.label_smoothing": "0.1"},
    ANSWER | {"model.adapter": "LoRA", "data.packing": "true", "data.max_length": "200"},
]
STREAM = {"data.streaming": "true", "data.shuffle_buffer": "5", "data.val_samples": "3"}
LINES += [CLASSIFY | LORA | STREAM, CHAT | LORA | STREAM | {"data.on_bad_row": "skip"}, PROSE | LORA | STREAM]
EXPERIMENT = {
    "question": "Is DoRA worth its time?",
    "configs": ["one.yaml"],
    "options": {"trainer.max_steps": 1},
    "axes": {
        "adapter": ["lora", "dora"],
        "model.optimizer.lr": [1.0e-4, 3.0e-4],
        "size": {"model.adapter.rank": [2, 4], "model.adapter.alpha": [4, 8]},
        "data": {"little": {"data.train_samples": 4}, "all": {}},
    },
    "exclude": [{"adapter": "dora", "size": "rank=4"}],
    "tune": {"model.optimizer.weight_decay": [0.0, 0.1]},
    "tune_seeds": [7, 8],
    "seeds": 2,
    "baseline": {"adapter": "lora", "data": "all"},
    "metric": "val_accuracy",
    "target": {"val_accuracy": 0.8},
    "published": {"source": "a paper", "rows": [{"label": "LoRA", "val_accuracy": 0.9}]},
}
BENCHMARKS = [
    {
        **{"step": 100, "seconds": 1.0, "skipped": {"other": "no time"}},
        "results": {
            "litpeft_blimp_causative": {
                **{"scores": {"acc": 0.5}, "standard_errors": {"acc": 0.1}, "items": 2, "num_fewshot": 0},
                **{"fingerprint": "f", "tasks": []},
            }
        },
    }
]


def nested(pairs: dict[str, str]) -> dict:
    """Return the options of a command line as the nested mapping of a configuration file."""
    tree: dict = {}
    for option, text in pairs.items():
        value = yaml.safe_load(text)
        path = option.replace("data.", "data.init_args.").replace("model.", "model.init_args.")
        for kind in ("adapter", "optimizer", "scheduler"):
            path = path.replace(f"{kind}.", f"{kind}.init_args.")
        *parents, last = path.split(".")
        if option in ("model", "data", "model.adapter", "model.optimizer", "model.scheduler"):
            parents, last = [*parents, last], "class_path"
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    return tree


class World:
    """The files of the folder.

    Args:
        folder: an empty folder, which becomes the working directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.before = os.getcwd()
        os.environ["LITPEFT_CACHE"] = str(self.folder / "cache")
        os.chdir(self.folder)
        write_tiny_llama(Path("llama"), write_tiny_bert(Path("bert")))
        write_sentences(Path("train.tsv"), 12)
        write_sentences(Path("val.tsv"), 6, seed=1)
        rows = [
            {"instruction": "was it good", "input": "the plot" if i % 2 else "", "output": "fine"} for i in range(8)
        ]
        Path("alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        turns = [{"role": role, "content": text} for role, text in (("user", "was it good"), ("assistant", "fine"))]
        Path("chat.jsonl").write_text("".join(json.dumps({"messages": turns * (1 + i % 2)}) + "\n" for i in range(8)))
        Path("text.txt").write_text("it was a fine film\n" * 8)
        Path("pairs.csv").write_text(
            "a,b,label\n" + "".join(f"the plot,{i},{'yes' if i % 2 else 'no'}\n" for i in range(8))
        )
        Path("one.yaml").write_text(yaml.safe_dump(nested(CLASSIFY | LORA | ADAMW)))
        Path("template.yaml").write_text("prompt_input: '{instruction} {input}'\nprompt_no_input: '{instruction}'\n")
        Path("experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))
        line = [f"--{option}={value}" for option, value in (CLASSIFY | LORA).items()]
        if main(["fit", *line, "--run_dir", "finished", "--record.predictions", "true"]):
            raise SystemExit("the unchanged run of the fuzzer failed")
        for adapter in ("lora", "dora"):
            for seed in (0, 1):
                examples = {"loss": [0.1, 0.2 + seed], "correct": [1, seed]}
                fields = {"benchmarks": BENCHMARKS, "checkpoint": "checkpoints/step-000100"}
                folder = write_run(
                    Path(f"runs/{adapter}/seed{seed}"), adapter, seed, 0.8 + seed / 10, None, examples, **fields
                )
                (folder / "benchmark_items").mkdir(exist_ok=True)
                items = {"litpeft_blimp_causative": {"fingerprint": "f", "acc": [0.0, 1.0]}}
                (folder / "benchmark_items" / "step-000100.json").write_text(json.dumps(items))
        sweep = {
            **{"experiment": "made_up", "axes": ["adapter"], "question": "?", "baseline": "lora", "metric": None},
            **{"target": None, "published": None, "varies": ["model.init_args.adapter.class_path"], "seeds": [0, 1]},
            "trials": [{"name": name, "label": name, "axes": {"adapter": name}} for name in ("lora", "dora")],
        }
        Path("runs/sweep.yaml").write_text(yaml.safe_dump(sweep))
        self.restore()

    def restore(self) -> None:
        """Undo the changes of a case: `existing` is a new copy of `finished`, `out` and `case` are removed."""
        self.clear()
        shutil.rmtree("existing", ignore_errors=True)
        shutil.copytree("finished", "existing")

    def clear(self) -> None:
        """Remove `out`, a folder or a file, and the files of the case."""
        for path in (Path("out"), Path("case")):
            if path.is_file() or path.is_symlink():
                path.unlink()
            shutil.rmtree(path, ignore_errors=True)

    def leave(self) -> None:
        os.chdir(self.before)

    def state(self) -> dict[str, tuple[int, int, int]]:
        """Return time, size and inode of each file, except new run folders, the cache and locks."""
        found = {}
        for folder, below, files in os.walk("."):
            if folder == ".":
                below[:] = [name for name in below if name not in ("out", "cache")]
            for name in files:
                if name != ".lock":
                    status = os.lstat(path := os.path.join(folder, name))
                    found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found
