"""Virtual tokens of PEFT's prompt methods: generation, padding, and where they are refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from litpeft.adapters import Peft
from litpeft.adapters.peft_injected import injected_in
from litpeft.commands.export_check import logits
from litpeft.errors import UserError
from tests.adapters.peft_cases import Case, inputs


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_generation_with_virtual_tokens_equals_greedy_decoding_by_hand(method: str) -> None:
    """With the cache and padding on the left; by hand each row is alone, without padding and cache."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=25, intermediate_size=64, initializer_range=0.5)).eval()
    adapter = Peft(method, {"num_virtual_tokens": 4})
    assert adapter.apply(model) is model
    with torch.no_grad():
        for parameter in adapter.added(model).values():
            parameter.normal_()
    ids = torch.tensor([[0, 0, 2, 5, 9], [2, 8, 20, 6, 7]])
    mask = (ids != 0).long()
    found = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=24
    )[:, 5:]
    for row, answer in zip(([2, 5, 9], [2, 8, 20, 6, 7]), found, strict=True):
        text = torch.tensor([row])
        while text.shape[1] < len(row) + 8 and text[0, -1] != 24:
            text = torch.cat([text, model(input_ids=text).logits[:, -1:].argmax(-1)], dim=1)
        by_hand = text[0, len(row) :]
        assert torch.equal(by_hand, answer[: len(by_hand)])


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "P_TUNING"])
def test_the_logits_are_those_of_the_rows_own_tokens(method: str) -> None:
    """By hand: the vectors of the virtual tokens stand before those of the row; their logits are left out."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=25, initializer_range=0.5)).eval()
    plain = copy.deepcopy(model)
    adapter = Peft(method, {"num_virtual_tokens": 4})
    adapter.apply(model)
    ids = torch.tensor([[2, 5, 9], [8, 20, 6]])
    found = model(ids).logits
    assert found.shape == (2, 3, 25)
    vectors = injected_in(model).wrapper.get_prompt(2)
    by_hand = plain(inputs_embeds=torch.cat([vectors, plain.get_input_embeddings()(ids)], dim=1)).logits[:, 4:]
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-5)
    assert (found - plain(ids).logits).abs().max() > 1e-3
    for wrong in (lambda: model(inputs_embeds=plain.get_input_embeddings()(ids)), lambda: model(ids, ids)):
        with pytest.raises(UserError, match="takes input_ids by name and no embeddings"):
            wrong()


def test_virtual_tokens_are_refused_where_they_would_be_wrong(tmp_path: Path, tiny_llama: str, tiny_model: str) -> None:
    this = Case("PROMPT_TUNING", "llama", tiny_llama, tmp_path / "packed")
    assert "leave out data.packing." in this.fit("run", "--data.packing", "true")
    this = Case("PROMPT_TUNING", "bert", tiny_model, tmp_path / "long", options={"num_virtual_tokens": 510})
    assert (
        "are more than the 512 positions of BertForSequenceClassification; give a smaller data.max_length"
        in this.fit("run")
    )
    this = Case("PREFIX_TUNING", "llama", tiny_llama, tmp_path / "recomputed")
    error = this.fit("run", "--model.gradient_checkpointing", "non_reentrant")
    assert "PREFIX_TUNING does not work with model.gradient_checkpointing; leave that out." in error
    classifier = LlamaForSequenceClassification(
        LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    )
    with pytest.raises(UserError, match="finds the end of a row by its token ids"):
        Peft("P_TUNING").apply(classifier, head=["score"])
    encoder_decoder = T5ForConditionalGeneration(
        T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=9)
    )
    with pytest.raises(UserError, match="no virtual tokens for encoder-decoder models"):
        Peft("PREFIX_TUNING").apply(encoder_decoder)


def test_prefix_tuning_of_a_decoder_with_a_classification_head_ignores_padding() -> None:
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=25,
        pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    Peft("PREFIX_TUNING", {"num_virtual_tokens": 4}).apply(model, head=["score"])
    both = logits(model, inputs())
    alone = model(input_ids=torch.tensor([[2, 8, 20, 3]])).logits
    assert torch.allclose(both[1:], alone, atol=1e-5)
