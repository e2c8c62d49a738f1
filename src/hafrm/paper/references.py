"""Models to compare a study with that need no training: a bag of words, and frozen backbones with a fitted head.

A frozen backbone shows what the pretrained model knows before any training. Its head is a logistic regression on
differences of hidden states at the scored positions, with a penalty that is chosen on validation pairs, as the models'
learning rates are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from hafrm.data import encode_pairs, load_pairs
from hafrm.encoding import ConversationEncoder, TokenGroup
from hafrm.evaluation.scoring import score_pairs
from hafrm.evaluation.words import fit_words
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout, choose_layout
from hafrm.models.modules import evaluating
from hafrm.models.options import LoraOptions, ScoreOptions
from hafrm.models.scorers import HybridScorer, Scorer
from hafrm.models.starts import new_model
from hafrm.models.tokenizers import load_tokenizer
from hafrm.paper.plans import FROZEN, WORDS
from hafrm.paper.record import lock_file, record_of
from hafrm.paper.runs import Run
from hafrm.paper.samples import TRAINING_SPLITS, pairs_of
from hafrm.paper.scales import Job
from hafrm.stats import Floats, best_penalty
from hafrm.training.last_layer import PENALTIES

_TOKENS, _SEQUENCES = 8192, 32
"""The most tokens, and in padded batches sequences, per forward pass."""


def reference_name(job: Job, row: str, backbone: str, name: str) -> str:
    """Return the name in the record of a set's scores by a bag of words, or by a frozen backbone."""
    model = WORDS if row == WORDS else f"{row}/{backbone}"
    return f"{model}/{name}{job.scale.cap_suffix}-{job.scale.max_length}tokens"


def score_references(job: Job, name: str, say: Callable[[str], None]) -> None:
    """Score a set's test pairs by models without training: a bag of words, and the backbones with a fitted head."""
    whole = [backbone for backbone in job.backbones if not job.scale.backbone(backbone).lora.enabled]
    for row, backbone in ((WORDS, job.backbones[0]), *((FROZEN, backbone) for backbone in whole)):
        _score_fitted(job, row, backbone, name, say)


def _score_fitted(job: Job, row: str, backbone: str, name: str, say: Callable[[str], None]) -> None:
    """Fit a model on the pairs that the backbone's runs have for training and validation, and score the test pairs."""
    record, known_as = record_of(job), reference_name(job, row, backbone, name)
    run = Run(backbone=backbone, sets=(name,), method="baseline")
    data, test = run.data(job), job.scale.sets[name].test
    pairs = load_pairs(test, split="test")
    depends_on = {"pairs": list(data.digests().values()), "test": pairs.reports[0].sha256, "penalty": "by loss"}
    with FileLock(lock_file(job, known_as)):
        if record.has_scores(known_as, depends_on):
            return
        say(f"fitting {known_as}")
        data.write()
        options = run.config(job, model="none").data_options
        encoder = ConversationEncoder(load_tokenizer(job.model(backbone)), job.scale.max_length)
        found = [[pair for each in data.names(split) for pair in pairs_of(each, split)] for split in TRAINING_SPLITS]
        tables = [encode_pairs(of_split, encoder, options) for of_split in found]
        scorer: Scorer
        if row == WORDS:
            usable = ([of_split[index] for index in each.kept] for of_split, each in zip(found, tables, strict=True))
            scorer = fit_words(*usable)
        else:
            scorer = fit_frozen(job.model(backbone), encoder, *tables)
        scores = list(score_pairs(scorer, pairs.pairs, model=row, data=test))
        record.add_scores(known_as, name, scores, depends_on=depends_on)


def fit_frozen(
    model: str, encoder: ConversationEncoder, train: Sequence[TokenGroup], validation: Sequence[TokenGroup]
) -> HybridScorer:
    """Fit a reward head on a backbone that stays as it is, by the Bradley-Terry loss (Eq. 2).

    Args:
        model: Folder or hub id of the backbone.
        train: Pairs to fit, the chosen response first.
        validation: Pairs on which the penalty is chosen; ties go to the larger one.
    """
    tokenizer: Any = encoder.tokenizer
    found = new_model(model, tokenizer, lora=LoraOptions(), lm_head=False)
    layout = choose_layout(found, tokenizer.pad_token_id, max_length=encoder.max_length)
    x, held_out = (_differences(found, layout, groups) for groups in (train, validation))
    scale = x.std(axis=0) + 1e-6
    _, weights = best_penalty(x / scale, held_out / scale, PENALTIES)
    with torch.no_grad():
        found.score.weight.copy_(torch.from_numpy(weights / scale)[None])
    return HybridScorer(found, encoder, layout, ScoreOptions())


@torch.no_grad()
def _differences(model: HybridModel, layout: Layout, groups: Sequence[TokenGroup]) -> Floats:
    """Return the scored state of each pair's chosen response minus that of the rejected one, [B, H]."""
    found: dict[int, Floats] = {}
    with evaluating(model):
        for rows in layout.plan(groups, sequences=_SEQUENCES, tokens=_TOKENS):
            batch = layout.batch([groups[row] for row in rows])
            states = model.hidden_states(batch)[batch.score_index].double().numpy()
            found.update(zip(rows, states[::2] - states[1::2], strict=True))
    return np.stack([found[row] for row in range(len(groups))])
