"""Log-likelihoods with shared prefixes computed once, compared with each row computed alone."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen2Config,
)

from litpeft.benchmarks import Live, Options
from litpeft.benchmarks.scorer import PrefixScorer, Row, _common, _Tree

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=256)
CONFIGS = {
    "llama": LLAMA,
    "gpt2": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "qwen2": Qwen2Config(**SIZES, intermediate_size=64, num_key_value_heads=2),
    "mistral": MistralConfig(**SIZES, intermediate_size=64, num_key_value_heads=2, sliding_window=None),
    "gemma2": Gemma2Config(  # caps its logits; every second layer has a sliding window
        **SIZES, intermediate_size=64, num_key_value_heads=2, head_dim=8, sliding_window=64, final_logit_softcapping=2.0
    ),
    "opt": OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32),
}


def build(config: Any, attention: str | None = None) -> PreTrainedModel:
    torch.manual_seed(0)
    model = Auto.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)  # large weights, so that tokens have different scores
    return model


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return build(LLAMA)


def rows_with_prefixes(count: int, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    prompt = [draw.randrange(40) for _ in range(20)]
    rows = []
    for _ in range(count):
        question = prompt + [draw.randrange(40) for _ in range(draw.randint(1, 5))]
        answers = [[draw.randrange(3) for _ in range(draw.randint(1, 4))] for _ in range(draw.randint(1, 4))]
        rows += [(question, answer) for answer in answers]
    return rows


def assert_equals_single(scorer: PrefixScorer, rows: list[Row], tolerance: float = 1e-4) -> None:
    for (score, greedy), (alone, alone_greedy) in zip(
        scorer.score(rows), [scorer.score_single(*row) for row in rows], strict=True
    ):
        assert score == pytest.approx(alone, abs=tolerance)
        assert greedy == alone_greedy


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        (name, attention)
        for name in CONFIGS
        for attention in ("sdpa", "eager")
        if name != "gemma2" or attention == "eager"
    ],
)
def test_scores_equal_those_of_each_row_alone(name: str, attention: str) -> None:
    model = build(CONFIGS[name], attention)
    rows = rows_with_prefixes(8)
    scorer = PrefixScorer(model)
    assert scorer.agrees(rows)
    assert_equals_single(scorer, rows)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), min_size=1, max_size=8), st.lists(st.integers(0, 2), min_size=1, max_size=4)
        ),
        min_size=1,
        max_size=12,
    ),
    tokens=st.integers(1, 40),
)
def test_any_rows_are_scored_right_in_batches_of_any_size(llama: PreTrainedModel, rows: list[Row], tokens: int) -> None:
    """With a vocabulary of three tokens, rows often repeat or are prefixes of each other."""
    assert_equals_single(PrefixScorer(llama, tokens=tokens), rows)


def test_a_shared_prefix_is_computed_once(llama: PreTrainedModel) -> None:
    rows = rows_with_prefixes(30)
    distinct = {tuple([*context, *answer[:-1]][: end + 1]) for context, answer in rows for end in range(64)}
    computed = 0

    def count(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        nonlocal computed
        computed += options["input_ids"].numel()

    handle = llama.register_forward_pre_hook(count, with_kwargs=True)
    try:
        PrefixScorer(llama, tokens=10_000).score(rows)
        assert computed == len(distinct)
        computed = 0
        PrefixScorer(llama, tokens=40).score(rows)  # across batches, a prefix is computed again
        assert computed < 1.2 * len(distinct)
    finally:
        handle.remove()


def test_the_head_is_computed_only_for_scored_positions(llama: PreTrainedModel) -> None:
    rows = [([1] * 30 + [2], [answer]) for answer in range(4)]  # four answers of one token share one position
    seen: list[torch.Size] = []
    handle = llama.lm_head.register_forward_hook(lambda _, arguments, output: seen.append(output.shape))
    try:
        PrefixScorer(llama).score(rows)
    finally:
        handle.remove()
    assert seen == [torch.Size([1, 1, 40])]


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4),  # ALiBi accepts only its own masks
        MambaConfig(
            vocab_size=40, hidden_size=32, num_hidden_layers=2, state_size=4
        ),  # its state runs across packed rows
    ],
    ids=["bloom", "mamba"],
)
def test_an_unsupported_architecture_is_detected(config: Any) -> None:
    assert not PrefixScorer(build(config)).agrees(rows_with_prefixes(4))


def test_a_model_that_ignores_the_mask_is_detected(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = PrefixScorer(llama)
    logits = PrefixScorer.logits
    monkeypatch.setattr(
        PrefixScorer,
        "logits",
        lambda self, ids, positions, mask, *rest: logits(self, ids, positions, mask | True, *rest),
    )
    assert not scorer.agrees(rows_with_prefixes(4))


def test_rows_longer_than_the_sliding_window_are_rejected() -> None:
    def takes(name: str, tokens: int) -> bool:
        return PrefixScorer(build(CONFIGS[name])).takes(([1] * (tokens - 1), [2]))

    assert takes("gemma2", 64)
    assert not takes("gemma2", 65)
    assert takes("mistral", 5000)
    assert takes("qwen2", 5000)  # qwen2 has a window but does not use it


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"sliding_window": 8, "use_sliding_window": False}, None),
        ({"sliding_window": 8, "use_sliding_window": True}, 8),
        ({"sliding_window": 8, "use_sliding_window": False, "attention_chunk_size": 12}, 12),
        ({"sliding_window": 20, "attention_chunk_size": 12}, 12),
        ({"sliding_window": None}, None),
    ],
)
def test_a_row_must_fit_in_every_window_that_is_used(config: dict[str, Any], longest: int | None) -> None:
    scorer = PrefixScorer.__new__(PrefixScorer)
    text = SimpleNamespace(**config)
    scorer.model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    for tokens in (4, 8, 9, 12, 13, 5000):
        assert scorer.takes(([1] * (tokens - 3), [2] * 3)) == (longest is None or tokens <= longest)


@given(st.lists(st.integers(0, 2), max_size=9), st.lists(st.integers(0, 2), max_size=9), st.booleans())
def test_the_common_prefix_of_two_rows(one: list[int], other: list[int], as_arrays: bool) -> None:
    expected = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    made = np.array if as_arrays else tuple
    assert _common(made(one), made(other)) == expected


def test_rows_longer_than_the_sliding_window_are_scored_alone() -> None:
    model = build(MistralConfig(**SIZES, intermediate_size=64, num_key_value_heads=2, sliding_window=22))
    rows = rows_with_prefixes(20)  # of 22 to 29 tokens
    progress: list[int] = []
    live = Live(SimpleNamespace(backbone=model), None, Options(), lambda done, total: progress.append(done))
    for row, (score, _) in zip(rows, live.score(rows), strict=True):
        assert score == pytest.approx(PrefixScorer(model).score_single(*row)[0], abs=1e-4)
    assert progress == sorted(progress)
    assert progress[-1] == len(rows)


def test_batches_become_smaller_when_memory_runs_out(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_with_prefixes(20)
    expected = PrefixScorer(llama).score(rows)
    logits = PrefixScorer.logits

    def short_of_memory(self: PrefixScorer, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(ids) > 16:
            raise torch.OutOfMemoryError("out of memory")
        return logits(self, ids, *rest)

    monkeypatch.setattr(PrefixScorer, "logits", short_of_memory)
    scorer = PrefixScorer(llama, tokens=100)
    for (score, _), (full, _) in zip(scorer.score(rows), expected, strict=True):
        assert score == pytest.approx(full, abs=1e-4)
    assert scorer.tokens == 12

    monkeypatch.setattr(
        PrefixScorer, "logits", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        scorer.score(rows)


def test_scores_from_before_memory_ran_out_are_not_added_twice(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_with_prefixes(40)
    expected = PrefixScorer(llama).score(rows)
    log_softmax, calls = torch.Tensor.log_softmax, iter(range(1000))

    def short_of_memory(self: torch.Tensor, *rest: Any) -> torch.Tensor:
        if next(calls) == 2:  # in the third slice of the first batch
            raise torch.OutOfMemoryError("out of memory")
        return log_softmax(self, *rest)

    monkeypatch.setattr("litpeft.benchmarks.scorer.SLICE", 4)
    monkeypatch.setattr(torch.Tensor, "log_softmax", short_of_memory)
    for (score, _), (full, _) in zip(PrefixScorer(llama, tokens=100).score(rows), expected, strict=True):
        assert score == pytest.approx(full, abs=1e-4)


def test_progress_counts_rows_and_may_stop_the_scoring(llama: PreTrainedModel) -> None:
    rows = rows_with_prefixes(20)
    progress: list[int] = []
    PrefixScorer(llama, tokens=30, tick=progress.append).score(rows)
    assert progress == sorted(progress)
    assert progress[-1] == len(rows)
    assert len(progress) > 2

    def stop(done: int) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        PrefixScorer(llama, tokens=30, tick=stop).score(rows)


def test_batches_cover_all_rows_and_respect_their_size() -> None:
    tree = _Tree(rows_with_prefixes(40))
    for max_nodes in (1, 7, 50, 100_000):
        first = batches = 0
        while first < len(tree.paths):
            last = tree.piece(first, max_nodes)
            begin = min(tree.shared[first + 1 : last], default=len(tree.paths[first]))
            nodes = {node for path in tree.paths[first:last] for node in path[begin:].tolist()}
            assert last > first
            assert len(nodes) <= max_nodes
            first, batches = last, batches + 1
        assert max_nodes < 100_000 or batches == 1
