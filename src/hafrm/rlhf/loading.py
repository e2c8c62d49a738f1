"""Load the policy: the model with values that begin at zero, on its device, and its reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hafrm.errors import ConfigError
from hafrm.models.hybrid import HybridModel, max_positions
from hafrm.models.layout import choose_layout
from hafrm.models.probe import random_groups
from hafrm.models.runinfo import require_finished
from hafrm.models.stock import new_model
from hafrm.packing import pad_rows
from hafrm.rlhf.options import RlhfConfig
from hafrm.rlhf.policy import Policy


def new_policy(config: RlhfConfig, tokenizer: Any) -> HybridModel:
    """Load the initial model, with adapters if any.

    Raises:
        ModelError: no causal LM can be loaded from there.
        ConfigError: prompts with responses do not fit the model.
    """
    require_finished(Path(config.model))
    model = new_model(
        config.model,
        tokenizer,
        lora=config.lora,
        head_init="zero",
        dtype=config.torch_dtype,
        trust_remote_code=config.trust_remote_code,
    )
    positions = max_positions(model.config)
    if positions is not None and config.max_length > positions:
        raise ConfigError(
            f"max_prompt_tokens {config.max_prompt_tokens} and sampling.max_new_tokens "
            f"{config.sampling.max_new_tokens} add up to {config.max_length}, but {config.model} has {positions} "
            "positions. Lower one of the two."
        )
    return model


def ready_policy(
    config: RlhfConfig, model: HybridModel, tokenizer: Any, *, report: Callable[[str], None] = lambda reason: None
) -> Policy:
    """Return the policy on its device, with its current weights as the reference.

    Args:
        config: The options.
        model: The result of `new_policy`.
        tokenizer: Its tokenizer.
        report: Called with the reason if batches are padded.

    Raises:
        ModelError: hafrm does not support the model's way of computing logits.
    """
    model.to(config.score.torch_device())
    pad = tokenizer.pad_token_id
    model.check_policy_head(pad_rows(random_groups(model), pad_token_id=pad))
    layout = choose_layout(model, pad, max_length=config.max_length, report=report)
    return Policy(model, layout, temperature=config.sampling.temperature, tokens_per_batch=config.tokens_per_batch)
