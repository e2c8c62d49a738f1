"""How the two losses of HAF pull on the backbone: cosine and size of their gradients, layer by layer, over training.

g_r is the gradient of the reward loss, g_p that of the policy loss times its weight (Eq. 5), both of the same pairs and
before the optimizer's scaling. A cosine near 0 means that the policy loss neither helps nor hinders the reward loss; a
ratio |g_p| / |g_r| far from 1 means that one of the losses dominates the update. This is our addition to the paper.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from hafrm.atomic import cache_folder
from hafrm.data import DataOptions, PairTables, encode_pairs, load_pairs
from hafrm.encoding import ConversationEncoder
from hafrm.models.checkpoints import load_run
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout, choose_layout
from hafrm.models.modules import evaluating
from hafrm.models.references import precompute_reference
from hafrm.models.starts import new_model
from hafrm.models.tokenizers import load_tokenizer
from hafrm.paper.plans import Plan
from hafrm.paper.probes import remembered
from hafrm.paper.probes.checkpoints import run_checkpoints
from hafrm.paper.runs import Run, seed_runs
from hafrm.paper.scales import Job
from hafrm.paper.tables import build_findings
from hafrm.report.figures import Curve, Panel, curve_kind, curve_panels
from hafrm.report.findings import Findings, Table
from hafrm.training.batches import PairCollator, PairDataset
from hafrm.training.loss import LossConfig
from hafrm.training.manifest import read_manifest
from hafrm.training.objective import Objective

_PAIRS = 64
"""Training pairs whose gradients are measured."""

_TOKENS = 2048
"""Maximum tokens per forward pass."""

_BLOCK = re.compile(r"\.(\d+)\.")

WHOLE = "backbone"
"""Name of all layers together."""


@dataclass(frozen=True)
class Pull:
    """The two losses' gradients on one part of the backbone."""

    cosine: float
    """Of g_r and g_p; NaN if one of them is zero."""
    ratio: float
    """|g_p| / |g_r|; infinite if g_r is zero."""


def pulls(model: HybridModel, tables: PairTables, loss: LossConfig, reference: np.ndarray) -> dict[str, Pull]:
    """Measure the gradients of a model's two losses on its backbone.

    Args:
        model: The model, in float32.
        reference: Log-prob of each response of the tables under the reference policy, [R].

    Returns:
        One entry for the whole backbone and one for each part: `embeddings`, `layer N`, `norm`. The reward head is left
        out, and an LM head that is not tied to the embeddings.
    """
    dataset = PairDataset(tables, reference)
    layout = choose_layout(model, 0, max_length=int(tables.longest().max()))
    reward, policy = (
        _gradients(model, dataset, layout, losses)
        for losses in (replace(loss, policy_ratio=0.0), replace(loss, reward_weight=0.0))
    )
    names = list(dict.fromkeys(map(_part_of, reward)))
    parts = {part: [name for name in reward if _part_of(name) == part] for part in names}
    return {
        part: _pull([reward[name] for name in members], [policy[name] for name in members])
        for part, members in {WHOLE: list(reward), **parts}.items()
    }


def _gradients(model: HybridModel, dataset: PairDataset, layout: Layout, loss: LossConfig) -> dict[str, Tensor]:
    """Return the gradient of the mean loss in each weight of the backbone, flat; zero where the loss has none."""
    collator, objective = PairCollator(layout, _TOKENS), Objective(loss)
    with evaluating(model), torch.enable_grad():
        model.zero_grad(set_to_none=True)
        for part in collator([dataset[row] for row in range(len(dataset))]).parts:
            (objective.pair_losses(model, part).loss.sum() / len(dataset)).backward()
        weights = {name: weight for name, weight in model.backbone.named_parameters() if weight.requires_grad}
        found = {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in weights.items()}
        model.zero_grad(set_to_none=True)
    return {name: gradient.flatten().double() for name, gradient in found.items()}


def _part_of(name: str) -> str:
    block = _BLOCK.search(f".{name}")
    if block:
        return f"layer {int(block[1]) + 1}"
    return "embeddings" if "embed" in name or "wte" in name or "wpe" in name else "norm"


def _pull(reward: Sequence[Tensor], policy: Sequence[Tensor]) -> Pull:
    r, p = torch.cat(list(reward)), torch.cat(list(policy))
    sizes = r.norm(), p.norm()
    cosine = r @ p / (sizes[0] * sizes[1])
    return Pull(float(cosine), float(sizes[1] / sizes[0]))


def plan(job: Job) -> Plan:
    """Plan a HAF run with all checkpoints on the first set, for each backbone and seed."""
    return Plan(tuple(run for backbone in job.backbones for run in _runs(job, backbone)))


def _runs(job: Job, backbone: str) -> list[Run]:
    return seed_runs(job, backbone, job.sets[:1], method="haf", keep_checkpoints=True)


def find(job: Job) -> Findings:
    """Build the table of cosines and ratios, and their curves."""
    found = {backbone: [_measured(job, run) for run in _runs(job, backbone)] for backbone in job.backbones}
    results = {
        name: {f"seed {seed}": steps for seed, steps in zip(job.seeds, runs, strict=True)}
        for name, runs in found.items()
    }
    return build_findings(
        job,
        "gradients",
        results={"gradients": results},
        tables=[_table(job, found)],
        figures={f"gradients-{backbone}": _figure(backbone, job, runs) for backbone, runs in found.items()},
        pairs=_PAIRS,
    )


_Steps = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By step and part: the values of a `Pull`."""


def _measured(job: Job, run: Run) -> _Steps:
    """Measure a run's start and its checkpoints; results are kept by the run's record and the pairs."""
    folder = run.folder(job)
    depends_on = {"run": (read_manifest(folder) or {}).get("started"), "pairs": _PAIRS, "data": run.data(job).digests()}

    def compute() -> dict[str, dict[str, dict[str, float]]]:
        return {str(step): {part: asdict(each) for part, each in found.items()} for step, found in _steps(job, run)}

    return cast(_Steps, remembered(job.root / "gradients", run.name.replace("/", "-"), depends_on, compute))


def _steps(job: Job, run: Run) -> Iterator[tuple[int, dict[str, Pull]]]:
    """Yield the steps of a run with the pulls at each."""
    folder, options = run.folder(job), DataOptions(max_length=job.scale.max_length)
    model_name = job.model(run.backbone)
    config = run.config(job, model=model_name)
    tokenizer = load_tokenizer(model_name)
    encoder = ConversationEncoder(tokenizer, options.max_length)
    pairs = [pair for name in run.data(job).names("train") for pair in load_pairs(name, split="train").pairs]
    tables = encode_pairs(pairs[: 2 * _PAIRS], encoder, options, limit=_PAIRS)
    start = new_model(model_name, tokenizer, lora=config.lora, seed=run.seed, dtype=torch.float32)
    layout = choose_layout(start, tokenizer.pad_token_id, max_length=options.max_length)
    cache = cache_folder("references")
    values = precompute_reference(start, tables, layout=layout, batch_size=16, tokens=_TOKENS, cache=cache)
    reference = np.full(tables.num_responses, np.nan, dtype=np.float32)
    for place, side in enumerate(("chosen", "rejected")):
        reference[tables.pairs[side]] = values[:, place]
    loss = config.resolved_loss
    yield 0, pulls(start, tables, loss, reference)
    for checkpoint in run_checkpoints(Path(folder)):
        model, _, _ = load_run(checkpoint.folder, dtype=torch.float32)
        model.requires_grad_(True)
        yield checkpoint.step, pulls(model, tables, loss, reference)


def _table(job: Job, found: Mapping[str, Sequence[_Steps]]) -> Table:
    rows = [
        (backbone, str(seed), step, part, f"{pull['cosine']:+.3f}", f"{pull['ratio']:.3f}")
        for backbone, runs in found.items()
        for seed, steps in zip(job.seeds, runs, strict=True)
        for step, parts in steps.items()
        for part, pull in parts.items()
        if part == WHOLE or step in (min(steps, key=int), max(steps, key=int))
    ]
    return Table("Ours", ("backbone", "seed", "step", "part", "cosine of g_r and g_p", "|g_p| / |g_r|"), rows)


def _figure(backbone: str, job: Job, runs: Sequence[_Steps]) -> Markup:
    """Draw the whole backbone's cosine and ratio over the steps, one curve for each seed."""

    def curve(number: int, value: str) -> Curve:
        points = tuple((float(step), parts[WHOLE][value]) for step, parts in runs[number].items())
        return Curve(f"seed {job.seeds[number]}", curve_kind(number), points)

    titles = {"cosine": "cosine of the two gradients", "ratio": "|g_p| / |g_r|"}
    panels = [
        Panel(title, tuple(curve(number, value) for number in range(len(runs)))) for value, title in titles.items()
    ]
    return curve_panels(f"Gradients of the two losses on {backbone}", panels)
