"""From a name to a scorer: a run of hafrm, a stock reward model, a causal LM with its reference, or a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig

from hafrm.encoding import ConversationEncoder, Overlong
from hafrm.errors import ConfigError, ModelError
from hafrm.losses import uses_reference
from hafrm.models.checkpoints import cast_weights, load_packed_start, load_run
from hafrm.models.checksums import CHECKSUMS_FILE
from hafrm.models.classifiers import (
    OwnClassScorer,
    has_stock_class,
    load_classifier,
    load_own_class,
    own_class,
    own_class_refused,
    pad_of_classifier,
)
from hafrm.models.heads import OPENRLHF, VALUE_SUMMARY, SavedHead, find_head
from hafrm.models.hybrid import HybridModel, head_width, max_positions, new_reward_head
from hafrm.models.layout import Layout, choose_layout, random_groups
from hafrm.models.options import Head, ScoreOptions, ScorerChoice, require_plain
from hafrm.models.references import weights_digest
from hafrm.models.remote import RemoteScorer, is_server
from hafrm.models.runinfo import RunInfo, is_run, require_as_saved
from hafrm.models.scorers import HybridScorer, Scorer, StockScorer
from hafrm.models.sources import require_place
from hafrm.models.stock import ONE_THREAD, load_causal_lm, with_lm_head
from hafrm.models.tokenizers import load_tokenizer, require_same_tokenizer, resize_embeddings
from hafrm.packing import pad_rows

_NO_SPREAD = "has no standard errors: they need a run with several reward heads (--loss.heads), and not --head policy."


def load_scorer(
    model: str,
    *,
    head: Head | None = None,
    reference: str | None = None,
    combined_weight: float | None = None,
    trust_remote_code: bool = False,
    options: ScoreOptions | None = None,
) -> Scorer:
    """Load a scorer by the name of a model.

    Args:
        model: A run's folder, a folder or hub id of a sequence classifier or a causal LM, or a reward server's address.
        head: Head of a run that scores; by default the trained one.
        reference: Reference policy for implicit rewards; by default the model from which the run was trained.
        combined_weight: w of the combined score; by default the value that the run fitted on its validation pairs.
        trust_remote_code: Run modelling code that comes with the models. Off unless you trust it.
        options: How to run.

    Raises:
        ModelError: no scorer can be loaded from there, or the requested head was not trained.
        ConfigError: an option has no effect on the requested head.

    Example:
        >>> scorer = load_scorer("runs/mine")
        >>> scorer.score([("Two plus two?", "Four."), ("Two plus two?", "Five.")])
        [1.73, -0.42]
    """
    choice = ScorerChoice(
        head=head, reference=reference, combined_weight=combined_weight, trust_remote_code=trust_remote_code
    )
    return load_chosen(model, choice, options or ScoreOptions())


def load_chosen(model: str, choice: ScorerChoice, options: ScoreOptions) -> Scorer:
    """Load one of a model's scores; see `load_scorer`."""
    if is_server(model):
        require_plain(model, choice)
        return RemoteScorer(model, batch_size=options.batch_size)
    with ONE_THREAD:
        return _load_here(model, choice, options)


def _load_here(model: str, choice: ScorerChoice, options: ScoreOptions) -> Scorer:
    """Load a scorer whose model runs in this process."""
    head, reference, trust_remote_code = choice.head, choice.reference, choice.trust_remote_code
    for each in filter(None, (model, reference)):
        require_place(each)
    require_as_saved(model)
    if is_run(model):
        return _load_run_scorer(Path(model), choice, options)
    if options.pessimism:
        raise ConfigError(f"score.pessimism: {model} {_NO_SPREAD}")
    if head in (None, "reward") and reference is None:
        return _load_foreign_scorer(model, options, trust_remote_code=trust_remote_code)
    if head == "combined":
        raise ModelError(f"{model} is not a run of hafrm and has only one head: nothing to combine. Use --head policy.")
    if reference is None:
        raise ModelError(
            f"{model} is not a run of hafrm: its {head!r} head needs `--reference`, the model from which it was tuned."
        )
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code, template=None, instead=options.template())
    require_same_tokenizer(tokenizer, model, reference, trust_remote_code=trust_remote_code)
    policy = _policy_only(model, tokenizer, options.torch_dtype(), trust_remote_code=trust_remote_code)
    base = _policy_only(reference, tokenizer, policy.stock_lm.dtype, trust_remote_code=trust_remote_code)
    encoder = _encoder(tokenizer, policy.config, options)
    return _hybrid_scorer(policy, base, encoder, options, (0.0, 0.1))


def load_log_prob_scorer(
    model: str,
    options: ScoreOptions | None = None,
    *,
    per_token: bool = False,
    template: str | None = None,
    trust_remote_code: bool = False,
) -> HybridScorer:
    """Load a causal LM as a scorer by the log-probability of responses.

    Args:
        model: Folder or hub id of a causal LM, or a run's folder for its policy head.
        options: How to run. The default limit of tokens is the model's own, at most 4096, or 512 with `per_token`.
        per_token: Average over the response's tokens (the log of the paper's perplexity, Table 6, with its sign
            reversed) instead of summing.
        template: Chat template for a tokenizer without one, unless `options.chat_template` is set; None raises an error
            for such tokenizers.
        trust_remote_code: Run modelling code that comes with the model. Off unless you trust it.

    Raises:
        ModelError: no causal LM can be loaded from there, or hafrm does not support how its logits are computed.
    """
    options = options or ScoreOptions()
    tokenizer = load_tokenizer(
        model, trust_remote_code=trust_remote_code, template=template, instead=options.template()
    )
    if is_run(model):
        policy, _, _ = load_run(model, dtype=options.torch_dtype(), trust_remote_code=trust_remote_code)
    else:
        policy = _policy_only(model, tokenizer, options.torch_dtype(), trust_remote_code=trust_remote_code)
    encoder = _encoder(tokenizer, policy.config, options, max_length=512 if per_token else 4096)
    return _hybrid_scorer(policy, None, encoder, options, (0.0, 1.0), summed=not per_token)


def _load_run_scorer(folder: Path, choice: ScorerChoice, options: ScoreOptions) -> Scorer:
    model, tokenizer, info = load_run(folder, dtype=options.torch_dtype(), trust_remote_code=choice.trust_remote_code)
    if template := options.template():
        tokenizer = load_tokenizer(str(folder), trust_remote_code=choice.trust_remote_code, instead=template)
    head = choice.head or info.default_head
    _require_trained(folder, info, head)
    if options.pessimism and (head == "policy" or model.heads == 1):
        raise ConfigError(f"score.pessimism: {folder} {_NO_SPREAD}")
    encoder = _encoder(tokenizer, model.config, options, max_length=info.max_length, overlong=info.overlong)
    if head == "reward":
        return _hybrid_scorer(model, None, encoder, options, (1.0, 0.0))
    weights = (0.0, info.beta)
    if head == "combined":
        weight = choice.combined_weight if choice.combined_weight is not None else info.combined_weight
        if weight is None:
            raise ModelError(
                f"{folder} has no weight for the combined score: it was trained without validation pairs, or they "
                "did not determine one. Give one with `--combined_weight`."
            )
        weights = (1.0, weight * info.beta)
    reference = _run_reference(folder, info, choice, tokenizer, model)
    return _hybrid_scorer(model, reference, encoder, options, weights)


def _run_reference(
    folder: Path, info: RunInfo, choice: ScorerChoice, tokenizer: Any, policy: HybridModel
) -> HybridModel | None:
    """Load the reference policy of a run's implicit rewards, in the policy's dtype; None if its loss used none.

    Training rounded the reference to the run's dtype, so the model is loaded in that dtype first. A reference that the
    user chose is not compared with the one in training.

    Raises:
        ModelError: the model from which the run was trained is missing or has changed.
    """
    trust, dtype, trained = choice.trust_remote_code, policy.stock_lm.dtype, getattr(torch, info.dtype)
    if choice.reference is not None:
        require_same_tokenizer(tokenizer, str(folder), choice.reference, trust_remote_code=trust)
        reference = _policy_only(choice.reference, tokenizer, trained, trust_remote_code=trust)
        cast_weights(reference, dtype)
        return reference
    if not uses_reference(info.policy_loss):
        return None
    if info.quantized:
        return load_packed_start(folder, policy, info, tokenizer, trust_remote_code=trust)
    remedy = f"If the model from which {folder} was trained has moved, give its new place with `--reference`."
    try:
        reference = _policy_only(info.base_model, tokenizer, trained, trust_remote_code=trust)
    except ModelError as error:
        raise ModelError(f"The reference policy of {folder} can't be loaded. {error} {remedy}") from error
    if info.base_digest and weights_digest(reference) != info.base_digest:
        raise ModelError(
            f"{info.base_model} no longer contains the weights from which {folder} was trained, so it can't be the "
            f"reference of its implicit rewards. {remedy}"
        )
    cast_weights(reference, dtype)
    return reference


def _hybrid_scorer(
    model: HybridModel,
    reference: HybridModel | None,
    encoder: ConversationEncoder,
    options: ScoreOptions,
    weights: tuple[float, float],
    *,
    summed: bool = False,
) -> HybridScorer:
    """Build a scorer on the options' device; rows are packed if all its models support that.

    Raises:
        ModelError: log-probs are needed, and hafrm's differ from the model's own.
    """
    pad = cast(Any, encoder.tokenizer).pad_token_id
    reward_weight, ratio_weight = weights
    parts = [part.to(options.torch_device()) for part in (model, reference) if part is not None]
    if ratio_weight:
        for part in parts:
            part.check_policy_head(pad_rows(random_groups(part), pad_token_id=pad))
    layouts = [
        choose_layout(
            part, pad, max_length=encoder.max_length, choice=options.layout, padding_side=options.padding_side
        )
        for part in parts
    ]
    layout = replace(layouts[0], packed=all(layout.packed for layout in layouts))
    return HybridScorer(
        model,
        encoder,
        layout,
        options,
        reward_weight=reward_weight,
        ratio_weight=ratio_weight,
        reference=reference,
        summed=summed,
    )


def _require_trained(folder: Path, info: RunInfo, head: Head) -> None:
    trained = {"reward": bool(info.reward_weight), "policy": bool(info.policy_ratio)}
    trained["combined"] = all(trained.values())
    if not trained[head]:
        usable = [name for name, yes in trained.items() if yes]
        raise ModelError(
            f"{folder} was trained with --method {info.method}, so its `{head}` head scores at random. "
            f"Use --head {' or '.join(usable)}."
        )


def _load_foreign_scorer(model: str, options: ScoreOptions, *, trust_remote_code: bool) -> Scorer:
    """Load a reward model that is not a run: by its stock class, or as a `HybridModel` if that lacks the head.

    hafrm's own exports are loaded as a `HybridModel` too, so that their responses share prompts, as a run's do.

    Raises:
        ModelError: it has no reward head, or one that neither class can load.
    """
    own, head = own_class(model), None
    if own is not None and not trust_remote_code:
        head = find_head(model)
        if head is None or head.weight is None or not head.name.startswith(VALUE_SUMMARY):
            raise own_class_refused(model)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code, template=None, instead=options.template())
    if own is not None and head is None:
        loaded = load_own_class(model, own, tokenizer, options.torch_dtype())
        return _classifier_scorer(OwnClassScorer, loaded, tokenizer, tokenizer.pad_token_id, options)
    if options.objective is not None:
        raise ConfigError(f"score.objective has no effect on {model}, which gives one reward: leave it out.")
    head = head or find_head(model, trust_remote_code=trust_remote_code)
    exported = (Path(model) / CHECKSUMS_FILE).is_file()
    if head is not None and (not has_stock_class(model, head, trust_remote_code=trust_remote_code) or exported):
        policy = _policy_only(model, tokenizer, options.torch_dtype(), trust_remote_code=trust_remote_code, head=head)
        encoder = _encoder(tokenizer, policy.config, options)
        return _hybrid_scorer(policy, None, encoder, options, (1.0, 0.0))
    classifier = load_classifier(model, options.torch_dtype(), head, trust_remote_code=trust_remote_code)
    resize_embeddings(classifier, tokenizer)
    return _classifier_scorer(StockScorer, classifier, tokenizer, pad_of_classifier(classifier, tokenizer), options)


def _classifier_scorer(
    kind: type[StockScorer], classifier: Any, tokenizer: Any, pad_token_id: int, options: ScoreOptions
) -> StockScorer:
    encoder = _encoder(tokenizer, classifier.config, options)
    layout = Layout(packed=False, pad_token_id=pad_token_id)
    return kind(classifier.eval().to(options.torch_device()), encoder, layout, options)


def _encoder(
    tokenizer: Any,
    config: PreTrainedConfig,
    options: ScoreOptions,
    *,
    max_length: int = 512,
    overlong: Overlong = "drop",
) -> ConversationEncoder:
    """Build the encoder; by default the limit does not exceed the model's positions.

    OpenRLHF's reward models are recognised by the class from which they were saved.
    """
    positions = max_positions(config) or max_length
    if options.max_length is not None and options.max_length > positions:
        raise ConfigError(
            f"score.max_length is {options.max_length}, but the model has {positions} positions. Lower it."
        )
    max_length = min(max_length, positions)
    scored_at = options.scored_at
    if scored_at == "auto":
        scored_at = "stop_token" if OPENRLHF.intersection(config.architectures or ()) else "template"
    return ConversationEncoder(
        tokenizer,
        max_length=options.max_length or max_length,
        overlong=options.overlong or overlong,
        scored_at=scored_at,
        special_tokens=options.special_tokens or "text",
        find_lost=False,  # `hafrm data check` and training report it
    )


def _policy_only(
    model: str,
    tokenizer: Any,
    dtype: torch.dtype | None,
    *,
    trust_remote_code: bool,
    head: SavedHead | None = None,
) -> HybridModel:
    """Load a causal LM, with room for the pad token; its reward head is the given one, or an unused zero head."""
    causal_lm = load_causal_lm(model, dtype=dtype, trust_remote_code=trust_remote_code, lm_head=head is None).eval()
    headed = with_lm_head(causal_lm)
    resize_embeddings(causal_lm, tokenizer)
    if not headed:  # a classifier's zero LM head would only take memory
        lm_head = cast(nn.Linear, causal_lm.get_output_embeddings())
        lm_head.weight = nn.Parameter(lm_head.weight[:0].clone(), requires_grad=False)
    if head is None or head.weight is None:
        score = new_reward_head(head_width(causal_lm), init="zero", seed=0, dtype=causal_lm.dtype)
        return HybridModel(causal_lm, score, with_lm_head=headed)
    score = _layer(head.weight, torch.full((1,), head.bias) if head.bias else None, causal_lm.dtype)
    layers = [part for weights in head.hidden for part in (_layer(*weights, torch.float32), nn.ReLU())]
    return HybridModel(causal_lm, score, with_lm_head=headed, before=nn.Sequential(*layers) if layers else None)


def _layer(weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
