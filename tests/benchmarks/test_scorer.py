"""Log-likelihoods by common beginnings, against each row computed by itself."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

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
from litpeft.benchmarks.scorer import PrefixScorer, Row, _Tree

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=256)
CONFIGS = {
    "llama": LLAMA,
    "gpt2": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "qwen2": Qwen2Config(**SIZES, intermediate_size=64, num_key_value_heads=2),
    "mistral": MistralConfig(**SIZES, intermediate_size=64, num_key_value_heads=2, sliding_window=None),
    "gemma2": Gemma2Config(  # caps its logits, and looks back in turns
        **SIZES, intermediate_size=64, num_key_value_heads=2, head_dim=8, sliding_window=64, final_logit_softcapping=2.0
    ),
    "opt": OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32),
}


def build(config: Any, attention: str | None = None) -> PreTrainedModel:
    torch.manual_seed(0)
    model = Auto.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)  # so that tokens are told apart
    return model


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return build(LLAMA)


def rows_with_beginnings(count: int, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    prompt = [draw.randrange(40) for _ in range(20)]
    rows = []
    for _ in range(count):
        question = prompt + [draw.randrange(40) for _ in range(draw.randint(1, 5))]
        answers = [[draw.randrange(3) for _ in range(draw.randint(1, 4))] for _ in range(draw.randint(1, 4))]
        rows += [(question, answer) for answer in answers]
    return rows


def assert_as_alone(scorer: PrefixScorer, rows: list[Row], tolerance: float = 1e-4) -> None:
    for (own, greedy), (alone, alone_greedy) in zip(
        scorer.score(rows), [scorer.score_single(*row) for row in rows], strict=True
    ):
        assert own == pytest.approx(alone, abs=tolerance)
        assert greedy == alone_greedy


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, way) for name in CONFIGS for way in ("sdpa", "eager") if name != "gemma2" or way == "eager"],
)
def test_scores_are_those_of_each_row_alone(name: str, attention: str) -> None:
    model = build(CONFIGS[name], attention)
    rows = rows_with_beginnings(8)
    scorer = PrefixScorer(model)
    assert scorer.agrees(rows)
    assert_as_alone(scorer, rows)


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
def test_any_rows_in_pieces_of_any_size(llama: PreTrainedModel, rows: list[Row], tokens: int) -> None:
    """Of three tokens: rows that repeat, and that are each other's beginnings, are the rule."""
    assert_as_alone(PrefixScorer(llama, tokens=tokens), rows)


def test_a_token_that_rows_share_is_computed_once(llama: PreTrainedModel) -> None:
    rows = rows_with_beginnings(30)
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
        PrefixScorer(llama, tokens=40).score(rows)  # in pieces, what stands before a border is met again
        assert computed < 1.2 * len(distinct)
    finally:
        handle.remove()


def test_the_head_is_asked_only_where_something_is_foretold(llama: PreTrainedModel) -> None:
    rows = [([1] * 30 + [2], [answer]) for answer in range(4)]  # four answers of one token: one place
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
        BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4),  # ALiBi: knows its own masks alone
        MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, state_size=4),  # a state runs through the rows
    ],
    ids=["bloom", "mamba"],
)
def test_a_model_of_another_kind_is_found_out(config: Any) -> None:
    assert not PrefixScorer(build(config)).agrees(rows_with_beginnings(4))


def test_a_model_that_leaves_a_mask_aside_is_found_out(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = PrefixScorer(llama)
    logits = PrefixScorer.logits
    monkeypatch.setattr(
        PrefixScorer,
        "logits",
        lambda self, ids, positions, mask, *rest: logits(self, ids, positions, mask | True, *rest),
    )
    assert not scorer.agrees(rows_with_beginnings(4))


def test_rows_beyond_what_layers_look_back_on_are_left_to_others() -> None:
    def takes(name: str, tokens: int) -> bool:
        return PrefixScorer(build(CONFIGS[name])).takes(([1] * (tokens - 1), [2]))

    assert takes("gemma2", 64)
    assert not takes("gemma2", 65)
    assert takes("mistral", 5000)
    assert takes("qwen2", 5000)  # it has a window, and does not use it


def test_of_such_a_model_a_benchmark_has_long_rows_scored_alone() -> None:
    model = build(MistralConfig(**SIZES, intermediate_size=64, num_key_value_heads=2, sliding_window=22))
    rows = rows_with_beginnings(20)  # of 22 to 29 tokens
    told: list[int] = []
    live = Live(SimpleNamespace(backbone=model), None, Options(), lambda done, total: told.append(done))
    for row, (own, _) in zip(rows, live.score(rows), strict=True):
        assert own == pytest.approx(PrefixScorer(model).score_single(*row)[0], abs=1e-4)
    assert told == sorted(told)
    assert told[-1] == len(rows)


def test_where_memory_runs_out_pieces_become_smaller(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_with_beginnings(20)
    expected = PrefixScorer(llama).score(rows)
    logits = PrefixScorer.logits

    def short_of_memory(self: PrefixScorer, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(ids) > 16:
            raise torch.OutOfMemoryError("no more")
        return logits(self, ids, *rest)

    monkeypatch.setattr(PrefixScorer, "logits", short_of_memory)
    scorer = PrefixScorer(llama, tokens=100)
    for (own, _), (whole, _) in zip(scorer.score(rows), expected, strict=True):
        assert own == pytest.approx(whole, abs=1e-4)
    assert scorer.tokens == 12

    monkeypatch.setattr(PrefixScorer, "logits", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    with pytest.raises(torch.OutOfMemoryError):
        scorer.score(rows)


def test_what_was_read_before_memory_ran_out_is_not_added_again(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_with_beginnings(40)
    expected = PrefixScorer(llama).score(rows)
    log_softmax, calls = torch.Tensor.log_softmax, iter(range(1000))

    def short_of_memory(self: torch.Tensor, *rest: Any) -> torch.Tensor:
        if next(calls) == 2:  # in the third slice of the first piece
            raise torch.OutOfMemoryError("no more")
        return log_softmax(self, *rest)

    monkeypatch.setattr("litpeft.benchmarks.scorer.SLICE", 4)
    monkeypatch.setattr(torch.Tensor, "log_softmax", short_of_memory)
    for (own, _), (whole, _) in zip(PrefixScorer(llama, tokens=100).score(rows), expected, strict=True):
        assert own == pytest.approx(whole, abs=1e-4)


def test_progress_is_told_in_rows_and_may_end_it(llama: PreTrainedModel) -> None:
    rows = rows_with_beginnings(20)
    told: list[int] = []
    PrefixScorer(llama, tokens=30, tick=told.append).score(rows)
    assert told == sorted(told)
    assert told[-1] == len(rows)
    assert len(told) > 2

    def stop(done: int) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        PrefixScorer(llama, tokens=30, tick=stop).score(rows)


def test_pieces_cover_all_rows_and_keep_to_their_size() -> None:
    tree = _Tree(rows_with_beginnings(40))
    for most in (1, 7, 50, 100_000):
        first = pieces = 0
        while first < len(tree.paths):
            last = tree.piece(first, most)
            begin = min(tree.shared[first + 1 : last], default=len(tree.paths[first]))
            nodes = {node for path in tree.paths[first:last] for node in path[begin:].tolist()}
            assert last > first
            assert len(nodes) <= most
            first, pieces = last, pieces + 1
        assert most < 100_000 or pieces == 1
