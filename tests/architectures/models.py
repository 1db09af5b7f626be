"""Configurations of tiny random models, by model type of transformers; each task lists the architectures it takes."""

from __future__ import annotations

from typing import Any

VOCABULARY = 30
BASE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BASE |= {"vocab_size": VOCABULARY, "pad_token_id": 0, "max_position_embeddings": 130}
TEXT = BASE | {"bos_token_id": 2, "eos_token_id": 3}
GROUPED = TEXT | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
ENDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 130, "vocab_size": VOCABULARY}
GPT_J = GPT | {"rotary_dim": 4}
BART = ENDS | {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 130}
BART |= {"decoder_start_token_id": 3}
CODERS = ("encoder", "decoder")
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY}
T5 |= {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 3}
XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": VOCABULARY, "max_position_embeddings": 130}
XLM |= {"pad_index": 0, "bos_index": 2, "eos_index": 3, "unk_index": 1, "mask_index": 4, "n_langs": 1}
XLM |= {"pad_token_id": 0}
DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": VOCABULARY}
DISTILBERT |= {"max_position_embeddings": 130, "pad_token_id": 0}
FUNNEL = {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "vocab_size": VOCABULARY, "block_sizes": [1, 1]}
MAMBA = ENDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
DEEPSEEK = TEXT | {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
}
DEEPSEEK |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1}
DEEPSEEK |= {"first_k_dense_replace": 1, "v_head_dim": 8, "topk_group": 1}

ENCODERS: dict[str, dict[str, Any]] = {  # SequenceClassification
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "ernie", "rembert", "roformer"), TEXT),
    **dict.fromkeys(("data2vec-text", "roberta-prelayernorm", "xlm-roberta-xl", "megatron-bert", "deberta"), TEXT),
    **dict.fromkeys(("deberta-v2", "esm", "layoutlm", "nystromformer", "ibert", "mobilebert"), TEXT),
    "jina_embeddings_v3": TEXT | {"lora_adaptations": ["a"], "lora_rank": 4},
    "albert": BASE | {"embedding_size": 16},
    "electra": BASE | {"embedding_size": 32},
    "distilbert": DISTILBERT,
    "funnel": FUNNEL,
    "modernbert": TEXT | {"cls_token_id": 2, "sep_token_id": 3},
    "big_bird": TEXT | {"attention_type": "original_full"},
    "convbert": TEXT | {"embedding_size": 32, "conv_kernel_size": 3},
    "squeezebert": BASE | {"embedding_size": 32},
    "longformer": TEXT | {"attention_window": 8},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "vocab_size": VOCABULARY, "pad_token_id": 0},
    "xlm": XLM,
    "flaubert": XLM,
    "canine": TEXT | {"num_hash_buckets": 64, "local_transformer_stride": 4, "max_position_embeddings": 140},
}
DECODERS: dict[str, dict[str, Any]] = {  # CausalLM
    **dict.fromkeys(("llama", "mistral", "qwen2", "phi3", "stablelm", "starcoder2", "phi", "persimmon"), GROUPED),
    **dict.fromkeys(("qwen3", "gemma", "gemma2", "olmo", "olmo2", "granite", "cohere", "cohere2", "nemotron"), HEADS),
    **dict.fromkeys(("glm", "glm4", "helium", "smollm3", "ernie4_5", "exaone4", "gemma3_text", "seed_oss"), HEADS),
    **dict.fromkeys(("gpt_neox", "falcon", "biogpt"), TEXT),
    **dict.fromkeys(("gpt2", "gpt_bigcode", "openai-gpt"), GPT | {"bos_token_id": 2, "eos_token_id": 3}),
    **dict.fromkeys(("codegen", "gptj"), GPT_J),
    "gpt_neo": TEXT | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "opt": TEXT | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": TEXT | {"n_layer": 2, "n_head": 4},
    "mpt": ENDS | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 130},
    "xglm": ENDS | {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64},
    # mixtures of experts
    "mixtral": HEADS | {"num_local_experts": 4},
    "qwen2_moe": HEADS | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": HEADS | {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    "gpt_oss": HEADS | {"num_local_experts": 4},
    "olmoe": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": GROUPED | {"num_local_experts": 4},
    "phimoe": GROUPED | {"num_local_experts": 4},
    "deepseek_v3": DEEPSEEK,
    "deepseek_v2": DEEPSEEK,
    # state-space and recurrent
    "mamba": MAMBA,
    "falcon_mamba": MAMBA,
    "mamba2": MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "rwkv": ENDS | {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 130},
    "recurrent_gemma": HEADS | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 64},
    "jamba": HEADS | {"num_experts": 4, "mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1},
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {  # Seq2SeqLM
    **dict.fromkeys(
        ("bart", "mbart", "pegasus", "m2m_100", "blenderbot", "blenderbot-small", "plbart", "marian"), BART
    ),
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), T5),
    "led": BART | {"attention_window": 8} | dict.fromkeys((f"max_{c}_position_embeddings" for c in CODERS), 130),
    "switch_transformers": T5
    | {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    | {"num_decoder_layers": 4},
    "prophetnet": ENDS
    | {"hidden_size": 32, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 2}
    | {"num_decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 130}
    | {"decoder_start_token_id": 3},
}
ARCHITECTURES = DECODERS | ENCODERS | ENCODER_DECODERS
ADAPTERS = {
    "lora": ["LoRA"],
    "dora": ["DoRA", "--model.adapter.targets", "all-linear"],
    "qlora": ["QLoRA", "--model.adapter.targets", "all-linear"],
}
SAMPLE = ("mixtral", "modernbert", "xlm-roberta", "bart")  # in the tests of every change
TARGETS, EXCLUDE = "--model.adapter.targets", "--model.adapter.exclude"
POOLER = [EXCLUDE, "[pooler]"]
STATE_SPACE = ("mamba", "falcon_mamba", "jamba")  # dt_proj is read, not called; PEFT refuses out_proj
# further options: models without query and value; layers that a model does not call
SPECIAL: dict[tuple[str, str], list[str]] = {
    ("mamba", "lora"): [TARGETS, "[in_proj,x_proj]"],
    ("falcon_mamba", "lora"): [TARGETS, "[in_proj,x_proj]"],
    **{("mamba2", name): [EXCLUDE, "[out_proj]"] for name in ("dora", "qlora")},
    ("mamba2", "lora"): [TARGETS, "[in_proj]"],
    ("rwkv", "lora"): [TARGETS, "[key,value,receptance]"],
    ("recurrent_gemma", "lora"): [TARGETS, "[linear_x,linear_y,gate_proj]"],
    ("xlnet", "lora"): [TARGETS, "[mlp]"],
    **{(kind, name): [EXCLUDE, "[dt_proj,out_proj]"] for kind in STATE_SPACE for name in ("dora", "qlora")},
    **{("esm", name): [EXCLUDE, "[regression]"] for name in ("dora", "qlora")},
    **{("led", name): [EXCLUDE, "[query_global,key_global,value_global]"] for name in ("dora", "qlora")},
    **{("siglip", name): [EXCLUDE, ".*vision_model.head.*"] for name in ("dora", "qlora")},
    ("canine", "all"): [EXCLUDE, ".*(final_char_encoder|projection).*"],  # for language models only
    ("big_bird", "dora"): POOLER,
    ("big_bird", "qlora"): POOLER,
    ("convnext", "lora"): [TARGETS, "[pwconv1,pwconv2]"],
}
# parameters without effect on the loss: the last layer's local query of a classifier that reads a global token only
ZERO_GRADIENT = {"longformer": r"layer\.1\.attention\.self\.(query|key|value)\."}
NO_BF16 = ("deberta", "xlnet")  # transformers itself cannot run them in bf16
VALIDATION_LESS = ("canine", "rwkv", "biogpt")  # their validation needs less memory than the estimate says
MIXTURES = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "olmoe",
    "granitemoe",
    "phimoe",
    "deepseek_v2",
    "deepseek_v3",
)
NO_ESTIMATE = ("led", "longformer", "switch_transformers")  # their forward pass depends on values of tensors
DORA_OF_EXPERTS = "PEFT has no DoRA for the experts of a mixture"
NO_EXPORT = {(kind, "dora", "adapter"): DORA_OF_EXPERTS for kind in (*MIXTURES, "jamba")}  # what is refused, and why
# PEFT takes gate_proj of the dense and shared layers for the experts' old name, and doubles the rank of gate_up_proj
NO_EXPORT |= {(kind, "qlora", "adapter"): "PEFT cannot load the adapter" for kind in ("deepseek_v2", "deepseek_v3")}
REFUSED: dict[tuple[str, str], str] = {  # part of the error message
    ("ibert", "lora"): "a QuantLinear, but this adapter acts on",
    ("ibert", "dora"): "'all-linear' matches no layer of IBert",
    ("ibert", "qlora"): "has no layer to quantise",
}
IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGE |= {"image_size": 16, "patch_size": 8}
VISION: dict[str, dict[str, Any]] = {  # trained through Python only
    **dict.fromkeys(("vit", "dinov2", "vit_msn", "ijepa"), IMAGE),
    "deit": IMAGE | {"architectures": ["DeiTForImageClassification"]},
    "beit": IMAGE | {"use_relative_position_bias": True, "use_mask_token": False},
    "swin": {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
    | {"window_size": 4},
    "convnext": {"image_size": 32, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "siglip": {"vision_config": IMAGE, "text_config": BASE, "image_size": 16},
    "clip": {"vision_config": IMAGE, "text_config": BASE, "image_size": 16},
}
