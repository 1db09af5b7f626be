"""Layers that are called with the same tensor: found in any architecture, and computed as each of them alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, T5Config
from transformers import T5ForConditionalGeneration as T5

from litpeft.adapters import Adapter, DoRA, LoRA
from litpeft.adapters.layers import adapted_layers
from litpeft.adapters.qlora import QLoRA
from litpeft.adapters.shared_linears import LinearCall, adapted_linears
from litpeft.profiling.flops import FlopCounter


def llama() -> nn.Module:
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "use_cache": False}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_attention_heads=4, num_key_value_heads=2, **sizes))


def bert() -> nn.Module:
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    free = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=50, num_attention_heads=4, **sizes, **free))


def t5() -> nn.Module:
    sizes: dict[str, Any] = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "dropout_rate": 0}
    return T5(T5Config(vocab_size=50, feed_forward_proj="gated-gelu", decoder_start_token_id=0, **sizes))


def steps(model: nn.Module, share: bool, number: int = 3) -> dict[str, Tensor]:
    """Make SGD steps, and return the gradients of the last one."""
    torch.manual_seed(1)
    if not share:
        observer_of(model).finish()
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.05)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    ids = torch.randint(50, (2, 12))
    labels = torch.randint(2, (2,)) if isinstance(model, BertForSequenceClassification) else ids
    for _ in range(number):
        optimizer.zero_grad()
        model.train()(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    return {name: p.grad for name, p in trained.items()}


def observer_of(model: nn.Module) -> Any:
    return next(iter(adapted_layers(model).values())).layer_group.observer


def shared(model: nn.Module) -> set[tuple[str, ...]]:
    """Return the last two parts of the names of the layers that share an input; the same for all blocks."""
    found: dict[int, list[str]] = {}
    for name, layer in adapted_layers(model).items():
        if layer.shared_input is not None:
            found.setdefault(id(layer.shared_input), []).append(".".join(name.split(".")[-2:]))
    return set(map(tuple, found.values()))


def adapted(make: Callable[[], nn.Module], adapter: Adapter, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return adapter.apply(make().to(dtype))


ALL = partial(dict, rank=4, targets="all-linear")


@pytest.mark.parametrize("strategy", [LoRA, DoRA, QLoRA])
@pytest.mark.parametrize("make", [llama, bert, t5])
def test_gradients_are_those_of_each_layer_alone(make: Callable[[], nn.Module], strategy: type[Adapter]) -> None:
    one, other = (steps(adapted(make, strategy(**ALL())), share) for share in (False, True))
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_16_bit_gradients_differ_by_their_rounding() -> None:
    exact = steps(adapted(llama, LoRA(**ALL())), share=False)
    alone, together = (steps(adapted(llama, LoRA(**ALL()), torch.bfloat16), share) for share in (False, True))
    errors = [
        sum(float((each[name] - exact[name]).square().sum()) for name in exact if "lora" in name) ** 0.5
        for each in (alone, together)
    ]
    assert errors[1] <= 1.1 * errors[0]  # fewer sums are rounded


def test_the_layers_that_share_an_input_are_found() -> None:
    models = {make: adapted(make, LoRA(**ALL())) for make in (llama, bert, t5)}
    for model in models.values():
        steps(model, share=True, number=1)
        assert not shared(model)  # the first step observes
        steps(model, share=True, number=1)
    assert shared(models[llama]) == {
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("mlp.gate_proj", "mlp.up_proj"),
    }
    assert shared(models[bert]) == {("self.query", "self.key", "self.value")}
    assert shared(models[t5]) == {
        ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v"),
        ("EncDecAttention.k", "EncDecAttention.v"),
        ("DenseReluDense.wi_0", "DenseReluDense.wi_1"),
    }


def test_nothing_is_shared_with_dropout_in_evaluation_or_across_scalings() -> None:
    model = adapted(llama, LoRA(dropout=0.1, **ALL()))
    steps(model, share=True)
    assert not shared(model)
    model = adapted(llama, LoRA(alpha_pattern={"k_proj": 3.0}, **ALL()))
    steps(model, share=True)
    assert {len(names) for names in shared(model)} == {2}  # gate and up
    model.eval()
    with torch.no_grad():
        model(torch.randint(50, (2, 12)))
    assert all(
        layer.shared_input is None or not layer.shared_input._outputs for layer in adapted_layers(model).values()
    )


class Three(nn.Module):
    """Layers that are called with one tensor, or with two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, size) for size in (5, 4, 5))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        a, b = self.a(x), self.b(x)
        return a.sum() + (b * b).sum() + (self.c(x if y is None else y) ** 3).sum()


def three(**options: Any) -> Three:
    """Return an adapted `Three` whose layers share their input."""
    torch.manual_seed(0)
    model = LoRA(rank=2, targets=["a", "b", "c"], **options).apply(Three()).train()
    for layer in adapted_layers(model).values():
        nn.init.normal_(layer.lora_B)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    model(torch.randn(3, 6)).backward()
    optimizer.step()
    optimizer.zero_grad()
    model(torch.randn(3, 6)).backward()
    optimizer.zero_grad()
    assert model.a.shared_input is model.b.shared_input is model.c.shared_input is not None
    return model


def grads(model: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in model.parameters() if p.requires_grad]


def alone(model: nn.Module) -> nn.Module:
    """Return a copy whose layers are computed alone."""
    model = copy.deepcopy(model)
    observer_of(model).finish()
    return model


def test_a_layer_that_gets_another_tensor_is_computed_with_that() -> None:
    model = three()
    other, x, y = alone(model), torch.randn(3, 6), torch.randn(3, 6)
    for each in (model, other):
        each(x, y).backward()
    for one, two in zip(grads(model), grads(other), strict=True):
        torch.testing.assert_close(one, two)


def test_a_changed_input_is_another_input() -> None:
    model = three()
    other, x = alone(model), torch.randn(3, 6)
    outs = []
    for each in (model, other):
        given = x.clone()
        first = each.a(given)
        outs.append((first, each.b(given.mul_(2))))
    torch.testing.assert_close(*outs)


def test_an_output_that_nobody_asked_for_is_forgotten_after_backward() -> None:
    model, x = three(), torch.randn(3, 6)
    model.a(x).sum().backward()
    assert model.b.lora_A.grad is None  # computed, but not used
    model.b(x).sum().backward()  # with a graph of its own
    other = alone(model)
    other.zero_grad()
    other.b(x).sum().backward()
    torch.testing.assert_close(model.b.lora_A.grad, other.b.lora_A.grad)


@pytest.mark.parametrize("leaves", [True, False])
def test_layers_are_computed_alone_when_one_is_gone_or_is_not_trained(leaves: bool) -> None:
    model = three()
    other, x = alone(model), torch.randn(3, 6)
    if leaves:
        del model.c, other.c
    else:
        model.c.eval(), other.c.eval()
    for each in (model, other):
        (each.a(x).sum() + (each.b(x) ** 2).sum()).backward()
    assert leaves or model.c.lora_A.grad is None
    for one, two in zip(grads(model), grads(other), strict=True):
        torch.testing.assert_close(one, two)
    model.a(x)
    assert not model.a.shared_input._outputs


def test_second_derivatives_are_refused() -> None:
    """The backward pass is not recorded, so a gradient of a gradient would be wrong."""
    model = three()
    found = torch.autograd.grad(model(torch.randn(3, 6)), [model.a.lora_A, model.b.lora_B], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(each.sum() for each in found).backward()


def test_a_copy_observes_for_itself() -> None:
    model = three()
    model.a(x := torch.randn(3, 6))  # leaves outputs behind
    other = copy.deepcopy(model)
    assert other.a.shared_input is None
    assert not observer_of(other).done
    other.b(x).sum().backward()
    assert model.b.lora_A.grad is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    kept, repeated = (adapted(llama, LoRA(**ALL())) for _ in range(2))
    repeated.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        repeated.enable_input_require_grads()
    one, other = steps(kept, share=True), steps(repeated, share=True)
    assert shared(kept) == shared(repeated)
    for name, gradient in one.items():  # not to the bit: on some processors the repeated forward sums in another order
        # fp32 sums in another order: with AVX-512 up to 2e-6 of the largest element
        assert torch.allclose(other[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_the_operations_are_those_of_the_layers_alone() -> None:
    model, x = three(), torch.randn(3, 6, requires_grad=True)
    counts = []
    for each in (model, alone(model)):
        with FlopCounter() as counter:
            each(x)
        counts.append(counter.flops)
    assert counts[0] == counts[1] > 0


def test_a_resumed_run_shares_the_same_inputs_from_its_first_step() -> None:
    adapter = LoRA(**ALL())
    model = adapted(llama, adapter)
    assert adapter.resume_state(model) is None
    steps(model, share=True, number=1)
    state = adapter.resume_state(model)  # as saved after the first step
    assert len(state) == 4
    resumed = adapted(llama, LoRA(**ALL()))
    adapter.load_resume_state(resumed, state)
    assert adapter.resume_state(resumed) == state
    assert shared(resumed) == shared(model)


class CalledBackwards(nn.Module):
    """Layers that are called in another order than they are defined, as those of GPT-J and GPT-Neo."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.c, self.b, self.a = nn.Linear(6, 33), nn.Linear(33, 7), nn.Linear(33, 5), nn.Linear(33, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.a(x).sum() + (self.b(x) ** 2).sum() + (self.c(x) ** 3).sum()


def test_layers_of_a_resumed_run_are_summed_in_the_order_of_their_calls() -> None:
    def prepared(state: Any) -> tuple[LoRA, nn.Module]:
        torch.manual_seed(0)
        adapter = LoRA(rank=3, targets=["first", "a", "b", "c"])
        model = adapter.apply(CalledBackwards()).train()
        for layer in adapted_layers(model).values():
            nn.init.normal_(layer.lora_B)
        adapter.load_resume_state(model, state)
        return adapter, model

    def step(model: nn.Module, seed: int) -> list[Tensor]:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
        optimizer.zero_grad()
        model(torch.randn(40, 6, generator=torch.Generator().manual_seed(seed))).backward()
        optimizer.step()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    adapter, model = prepared(None)
    step(model, 0)
    state = adapter.resume_state(model)
    assert [sorted(names) for names in state] == [["a", "b", "c"]]
    assert state == [["a", "b", "c"]]
    resumed_adapter, resumed = prepared(state)
    for found, expected in zip(step(resumed, 1), step(model, 1), strict=True):
        assert torch.equal(found, expected)
    assert resumed_adapter.resume_state(resumed) == state
    model.b.shared_input = None  # as if it were replaced: the others are computed alone, here and after a resume
    assert adapter.resume_state(model) == []


@pytest.mark.parametrize("magnitude", [False, True])
def test_gradients_in_float64_equal_finite_differences(magnitude: bool) -> None:
    torch.manual_seed(0)
    draw = partial(torch.randn, dtype=torch.float64)
    weights, norms = [draw(5, 4), draw(3, 4)], [torch.rand(size, dtype=torch.float64) + 0.5 for size in (5, 3)]
    names = [
        draw(2, 3, 4),
        *(draw(size, 4) for size in (2, 3)),
        draw(5, 2),
        draw(3, 3),
        draw(5),
        draw(3),
        draw(5),
        draw(3),
    ]

    def function(x: Tensor, *t: Tensor) -> tuple[Tensor, ...]:
        calls = []
        for i in range(2):
            m = t[6 + i] if magnitude else None
            gain = m.detach() / norms[i] if magnitude else None
            calls.append(LinearCall((weights[i],), lambda w, dtype: w.to(dtype), t[4 + i], t[i], t[2 + i], m, gain))
        return adapted_linears(x, calls, 0.7, lambda: None)

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in names[: 9 if magnitude else 7]])
