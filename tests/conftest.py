"""Shared fixtures: tiny models with tokenizers, learnable sentences, and a command line that trains on them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # for processes that tests start: two multi-threaded processes slow each other down
os.environ["HF_HUB_OFFLINE"] = "1"  # set before the hub's libraries are imported: no test may wait for a network

import lightning.pytorch.cli  # noqa: F401 (before rich, see litpeft/cli/console.py)
import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from litpeft.errors import naming_options

# a busy machine may take any time for an example
settings.register_profile("busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

SHARED = Path(__file__).parents[2] / "shared"
GOOD = ["good", "great", "lovely", "superb", "fine"]
BAD = ["bad", "awful", "dull", "poor", "weak"]
# options of a Trainer that writes no files
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}
REST = ["the", "film", "was", "a", "story", "and", "plot", "of", "it", "very"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow tests first, so that no process still runs a long one when the others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds of the tests of each folder, added over all processes, with their fixtures."""
    seconds: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport):
            path = Path(report.nodeid.partition("::")[0])
            seconds["/".join(path.parts[:2]) if len(path.parts) > 2 else str(path.parent)] += report.duration
    terminalreporter.section("seconds of each folder")
    for folder, total in seconds.most_common():
        terminalreporter.write_line(f"{total:7.0f} {folder}")
    terminalreporter.write_line(f"{seconds.total():7.0f} all")


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    """Let SIGINT interrupt runs, even if the tests were started in the background, where shells ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["LITPEFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # the folder of all processes of this session
    os.environ.setdefault("LITPEFT_TEST_MODELS", str(shared / "models"))
    torch.set_num_threads(1)  # several threads slow each other down on a shared machine


@pytest.fixture(scope="session", autouse=True)
def _options_in_errors() -> Iterator[None]:
    """Let errors name options, also where a test calls a constructor; tests/api tests what a user of Python reads."""
    with naming_options():
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a two-layer BERT with random weights and a whole-word tokenizer."""
    return write_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


def write_tiny_bert(folder: Path, seed: int = 0) -> str:
    """Write the tiny BERT to a folder, and return the folder."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*specials, *REST, *GOOD, *BAD])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = BertForSequenceClassification(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("classifier")}
    model.save_pretrained(folder, state_dict=state)  # pretrained models come without a head
    return str(folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> str:
    """Return the folder of a two-layer Llama with random weights and the tiny BERT's tokenizer."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"), tiny_model)


def write_tiny_llama(folder: Path, tokenizer_of: str) -> str:
    """Write the tiny Llama with the tokenizer of another model to a folder, and return the folder."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_of, eos_token="[SEP]")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=512, pad_token_id=0, bos_token_id=2, eos_token_id=3, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def byte_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a two-layer Llama with random weights and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("byte-llama")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {letter: place for place, letter in enumerate(letters, 1)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=2048, eos_token="<end>", pad_token="<end>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        **sizes, vocab_size=257, intermediate_size=64, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def write_sentences(path: Path, rows: int, seed: int = 0) -> str:
    """Write a TSV of sentences of different lengths, labelled 1 with a word of GOOD, 0 with a word of BAD; return its path."""
    draw = random.Random(seed)
    lines = ["sentence\tlabel"]
    for i in range(rows):
        words = draw.choices(REST, k=draw.randint(1, 12))
        words.insert(draw.randint(0, len(words)), draw.choice((BAD, GOOD)[i % 2]))
        lines.append(f"{' '.join(words)}\t{i % 2}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return files of 96 training and 32 validation sentences."""
    folder = tmp_path_factory.mktemp("sentences")
    return {"train": write_sentences(folder / "train.tsv", 96), "val": write_sentences(folder / "val.tsv", 32, seed=1)}


@pytest.fixture(scope="session")
def fit_arguments(tiny_model: str, sentences: dict[str, str]) -> list[str]:
    """Return the arguments of `litpeft` that fit the tiny model, without the run folder."""
    return [
        *("fit", "--model", "SequenceClassification", "--model.model_name", tiny_model, "--model.dtype", "fp32"),
        *("--data", "SST2", "--data.train_file", sentences["train"], "--data.val_file", sentences["val"]),
        *("--data.batch_size", "8", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"),
    ]


def litpeft(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the litpeft command line in a new process."""
    return subprocess.run(
        [sys.executable, "-m", "litpeft", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def write_killer(folder: Path, step: int) -> list[str]:
    """Return options that make a run started in `folder` kill itself with SIGKILL after `step` optimizer steps."""
    (folder / "stopping.py").write_text(
        "import os, signal\n"
        "from lightning import Callback\n"
        "class Stop(Callback):\n"
        "    def on_train_batch_end(self, trainer, *args):\n"
        f"        if trainer.global_step >= {step}:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    return ["--trainer.callbacks", "stopping.Stop"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data sets next to the checkout; skip the test if there is none."""
    if not SHARED.is_dir():
        pytest.skip("no folder ../shared with real data beside this checkout")
    return SHARED


HOLD = """
import sys, time
from pathlib import Path
from litpeft.runs.lock import lock
held = lock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


def hold_lock(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """Return a process that holds the lock of a folder for some seconds."""
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    return holder
