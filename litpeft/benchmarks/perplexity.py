"""The benchmark `perplexity`: how well a language model predicts a text that it was not trained on."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

from lightning import LightningDataModule

from litpeft.benchmarks.base import Benchmark, Live, Options, Result
from litpeft.errors import UserError
from litpeft.tasks import CausalLM, FineTuner


class Perplexity(Benchmark):
    """Perplexity per token and bits per byte of `benchmarks.text_file`, paragraph by paragraph.

    Empty lines separate paragraphs; in a file without empty lines each line is a paragraph. A paragraph is read in
    windows of `data.max_length` tokens. Each token is predicted from the tokens before it in the window; the first
    token of a paragraph, from the BOS (else EOS) token. Perplexity depends on the tokenizer; bits per byte (Gao et al.
    2020, section 3.1, https://arxiv.org/abs/2101.00027) do not. Standard errors are of a ratio of sums over paragraphs.
    """

    name = "perplexity"

    def check(self, task: FineTuner, data: LightningDataModule, options: Options) -> None:
        if not isinstance(task, CausalLM):
            raise UserError("benchmarks.tasks perplexity needs a causal language model (--model CausalLM).")
        if options.text_file is None:
            raise UserError(
                "benchmarks.tasks perplexity needs --benchmarks.text_file, a text that is not in the training data."
            )
        _paragraphs(options.text_file)

    def run(self, live: Live) -> Result:
        tokenizer, window = live.data.tokenizer, live.data.max_length
        paragraphs = _paragraphs(live.options.text_file)[: live.options.limit]
        begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        rows, owners, tokens = [], [], []
        for place, paragraph in enumerate(paragraphs):
            ids = tokenizer(paragraph, add_special_tokens=False, verbose=False)["input_ids"]
            tokens.append(len(ids))
            for start in range(0, len(ids), window):
                rows.append(([ids[start - 1] if start else begin], ids[start : start + window]))
                owners.append(place)
        nats = [0.0] * len(paragraphs)
        for owner, (log, _) in zip(owners, live.score(rows), strict=True):
            nats[owner] -= log
        sizes = [len(paragraph.encode()) for paragraph in paragraphs]
        each, error = _ratio(nats, tokens)
        byte, byte_error = _ratio([n / math.log(2) for n in nats], sizes)
        identity = "\n".join([str(window), *paragraphs])
        return Result(
            scores={"per_token": math.exp(each), "bits_per_byte": byte},
            standard_errors={"per_token": math.exp(each) * error, "bits_per_byte": byte_error} if error else {},
            items=len(paragraphs),
            fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16],
        )


def _paragraphs(path: str) -> list[str]:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"benchmarks.text_file {path}: {getattr(error, 'strerror', None) or error}.") from error
    parts = re.split(r"\n\s*\n", text.strip())
    found = [part.strip() for part in (parts if len(parts) > 1 else text.splitlines()) if part.strip()]
    if not found:
        raise UserError(f"benchmarks.text_file {path} holds no text.")
    return found


def _ratio(sums: list[float], sizes: list[int]) -> tuple[float, float]:
    """Return Σa/Σb and its standard error over pairs, 0 for one pair (Cochran 1977, eq. 6.13)."""
    ratio, count = sum(sums) / sum(sizes), len(sums)
    if count < 2:
        return ratio, 0.0
    squares = sum((a - ratio * b) ** 2 for a, b in zip(sums, sizes, strict=True))
    return ratio, math.sqrt(count / (count - 1) * squares) / sum(sizes)
