"""Configs of a few thousand parameters for every causal LM of transformers, by rules over the names of their fields.

The rules can give an inconsistent config for an architecture; `EXCEPTIONS` sets those few fields by hand. A field is
only set where the architecture's config has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY, PAD, BOS, EOS = 260, 3, 1, 2

SMALL: dict[int, str] = {
    VOCABULARY: """
        vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size shape_vocab_size
    """,
    64: """
        intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim d_inner dim_ff dff ffn_hidden_size n_inner
        d_ff moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size
        expert_ffn_hidden_size intermediate_size_mlp dense_intermediate_size shared_experts_intermediate_size
        moe_shared_expert_intermediate_size feed_forward_size mamba_d_ssm mlp_dim
    """,
    32: """
        hidden_size d_model n_embd emb_dim embedding_dim embedding_size attention_hidden_size lru_width
        embed_dim word_embed_proj_dim input_embedding_size output_embedding_size hidden_size_global
        backbone_hidden_size pronunciation_embed_dim shape_embed_dim ple_embed_dim out_hidden_size
        vision_output_dim
    """,
    8: """
        head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim dim_head d_head linear_key_head_dim
        linear_value_head_dim attention_head_size kv_channels index_head_dim swa_head_dim
        query_pre_attn_scalar d_kv global_head_dim rotary_dim kv_lora_rank q_lora_rank mamba_d_head
        mamba_head_dim linear_head_dim mamba_headdim hidden_size_per_layer_input laurel_rank o_lora_rank
        adapter_rank hc_lowrank gated_norm_rank d_rel mamba_chunk_size chunk_size state_size ssm_state_size
        mamba_d_state time_step_rank mamba_dt_rank patch_size
    """,
    16: """
        qk_head_dim sliding_window sliding_window_size attention_window_size local_attention window_size
        attention_chunk_size local_attn_chunk_length lsh_attn_chunk_length block_size rel_extent
    """,
    4: """
        num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads
        encoder_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts
        num_decoder_attention_heads index_n_heads num_encoder_attention_heads swa_num_attention_heads
        linear_num_heads num_query_groups hc_count altup_num_inputs
    """,
    2: """
        num_key_value_heads num_kv_heads swa_num_key_value_heads num_hidden_layers n_layer n_layers num_layers
        decoder_layers encoder_layers num_decoder_layers num_encoder_layers num_experts_per_tok
        num_experts_per_token moe_topk moe_k linear_num_key_heads linear_num_value_heads depth num_blocks
        num_layers_per_stack num_global_layers zero_expert_num
    """,
    1: """
        n_group topk_group num_expert_group n_groups n_shared_experts num_shared_experts mamba_n_groups
        first_k_dense_replace num_nextn_predict_layers o_groups
    """,
    0: """
        num_kv_shared_layers moe_layer_start_index
    """,
    256: """
        index_topk max_position_embeddings n_positions max_seq_len max_target_positions max_source_positions n_ctx
        context_length model_max_length original_max_position_embeddings
    """,
}
"""Field names by the value that they get."""

VALUES = {name: value for value, names in SMALL.items() for name in names.split()}
TOKENS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": BOS}

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8},
    "blt": {"encoder_hash_byte_group_vocab": 128},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_n_heads": 8},
    "gemma3n_text": {"intermediate_size": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "hybrid", "hybrid"],
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
    },
    "zamba2": {"layer_types": ["linear_attention", "hybrid"], "attention_head_dim": 16, "attention_hidden_size": 64},
    "zaya": {"num_experts_per_tok": 1},
}
"""Fields by architecture, for configs that the rules alone don't make valid."""


def small_values(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config that the rules set, including those of nested configs."""
    values: dict[str, Any] = {}
    for name, value in defaults.items():
        if name in TOKENS:
            values[name] = TOKENS[name]
        elif name in VALUES and (value is None or type(value) in (int, float)):
            if value is not None or name == "num_key_value_heads":
                values[name] = VALUES[name]
        elif name == "is_decoder":
            values[name] = True  # otherwise BERT and similar models see later tokens
        elif name.endswith("_config") and isinstance(value, dict) and name != "quantization_config":
            values[name] = small_values(value)
    return values


def tiny_config(name: str) -> PreTrainedConfig:
    """A small config of an architecture, by its model type."""
    kind = CONFIG_MAPPING[name]
    known = {**kind().to_dict(), **dict.fromkeys(EXCEPTIONS.get(name, {}))}
    values = small_values(known)
    if "kv_lora_rank" in values:  # latent attention has keys for every head
        values["num_key_value_heads"] = values["num_attention_heads"]
    for field, value in EXCEPTIONS.get(name, {}).items():
        values[field] = {**values[field], **value} if isinstance(values.get(field), dict) else value
    return kind(**values)


def tiny_model(name: str, *, seed: int = 0) -> PreTrainedModel:
    """Create a small random causal LM of an architecture, with weights large enough to distinguish texts."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    return model.eval()
