"""`litpeft fit --help`: one screen of the options that people use; `--help all` prints every option of the parser.

Printed before torch is imported; every option too, if an earlier command of this version has kept the parser's help.
To show an option in short, add a row; a test gives all of them to the parser.
"""

from __future__ import annotations

from collections.abc import Sequence

from litpeft.cli import known_options

HELP = ("-h", "--help")
Rows = tuple[tuple[str, str], ...]  # (option with its value, what it does)

RUN: Rows = (
    ("--config NAME|FILE", "options by name (see `litpeft configs`) or from a file; later ones override"),
    ("--run_dir FOLDER", "folder of the run (default: runs/EXPERIMENT/WHAT_VARIES/seedN)"),
    ("--experiment NAME", "name that groups runs"),
    ("--seed_everything N", "random seed"),
    ("--resume | --overwrite", "continue the run in the folder, or replace it"),
    ("--print_config", "print all options of the run as YAML, and stop"),
)
MODEL: Rows = (
    ("--model TASK", "SequenceClassification, SequenceRegression, CausalLM, ImageClassification, ..."),
    ("--model.model_name NAME", "hub id, folder, package:NAME or demo:minilm"),
    ("--model.adapter METHOD", "LoRA, DoRA, QLoRA, QDoRA, Full, Frozen, or Peft with --model.adapter.method"),
    ("--model.adapter.rank N", "also .alpha, .dropout, and .targets: all-linear or [query, value]"),
    ("--model.base KIND", "frozen weights in nf4, fp4 or int8"),
    ("--model.dtype TYPE", "bf16, fp16 or fp32: compute dtype"),
    ("--model.optimizer CLASS", "torch.optim.AdamW, bitsandbytes.optim.AdamW8bit, ...; also .lr, .weight_decay"),
    ("--model.scheduler CLASS", "WarmupLinear, WarmupCosine, Constant; also .warmup: steps, or a share of them"),
)
DATA: Rows = (
    ("--data CLASS", "TextClassification, Conversations, SST2, Alpaca, GLUE, ImageFolder, ..."),
    ("--data.train_file FILE", "csv, tsv, json, jsonl or parquet; also .val_file, .test_file"),
    ("--data.text_column NAME", "also .label_column, of TextClassification"),
    ("--data.batch_size N", "rows per step and device; or .batch_tokens: most tokens, padding included"),
    ("--data.max_length N", "longer rows are cut, which is counted"),
    ("--data.train_samples N", "only so many rows; also .val_samples"),
)
TRAINING: Rows = (
    ("--trainer.max_epochs N", "also .max_steps"),
    ("--trainer.accumulate_grad_batches N", "batches per optimizer step"),
    ("--trainer.val_check_interval N", "validate every N batches, or this share of an epoch"),
    ("--trainer.accelerator NAME", "cpu or gpu (default: a GPU if there is one); also .devices, .strategy"),
)
AFTER: Rows = (
    ("--checkpoint.keep WHICH", "last, best, all, or a number; also .every_n_steps, .every_n_minutes"),
    ("--benchmarks.tasks NAMES", "evaluate before and after: litpeft_truthfulqa_mc1, perplexity, held_out, ..."),
    ("--record.predictions BOOL", "keep each row's result, for tests over rows (default: up to 10,000 rows)"),
)
FIT = (("run", RUN), ("model", MODEL), ("data", DATA), ("training", TRAINING), ("checkpoints and results", AFTER))
FINISHED: Rows = (
    ("--run_dir FOLDER", "folder of the run"),
    ("--ckpt_path FOLDER", "another checkpoint than the one that the record names"),
    ("--data.{split}_file FILE", "{rows}"),
    ("--data.batch_size N", "rows per batch"),
    ("--trainer.accelerator NAME", "cpu or gpu (default: a GPU if there is one)"),
)
EXAMPLES = {
    "fit": "litpeft fit --config base --config sst2 --config lora --config adamw --model.model_name roberta-base",
    "validate": "litpeft validate --run_dir runs/mine",
    "test": "litpeft test --run_dir runs/mine --data.test_file test.csv",
    "predict": "litpeft predict --run_dir runs/mine --data.predict_file new.csv",
}
SPLITS = {
    "validate": ("val", "other validation rows"),
    "test": ("test", "test rows"),
    "predict": ("predict", "new rows"),
}


def help_text(verb: str, arguments: Sequence[str]) -> str | None:
    """Return the help of a verb; None if it is not asked for, or only the parser can give it.

    Args:
        verb: fit, validate, test or predict; or the parser's name of a command that takes the options of fit.
        arguments: the words after the verb.
    """
    asked = [place for place, word in enumerate(arguments) if word in HELP]
    if not asked:
        return None
    if verb not in EXAMPLES or list(arguments[asked[0] + 1 :][:1]) == ["all"]:
        return (known_options.load(verb) or {}).get("help")
    lines = [f"usage: litpeft {verb} [--OPTION VALUE ...]", "", f"  {EXAMPLES[verb]}", ""]
    for title, rows in FIT if verb == "fit" else (("options", _rows(verb)),):
        lines += [title] + [f"  {option:36} {what}" for option, what in rows]
    end = "" if verb != "fit" else "; of one class: --model.help TASK, --data.help CLASS"
    return "\n".join([*lines, "", f"all options: litpeft {verb} --help all{end}"])


def without_all(arguments: Sequence[str]) -> list[str]:
    """Return the words without the `all` after `--help`, which the parser does not know."""
    return [
        word for place, word in enumerate(arguments) if not (word == "all" and place and arguments[place - 1] in HELP)
    ]


def _rows(verb: str) -> Rows:
    split, rows = SPLITS[verb]
    return tuple((option.format(split=split), what.format(rows=rows)) for option, what in FINISHED)
