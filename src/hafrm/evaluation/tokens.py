"""Compute values for each token of each model's worst mistakes, for models with a policy head and a reference policy.

These are the policy head's log-ratios and, if the model has a trained reward head, its reward of the response so far.

They are appended to `parts/tokens.jsonl` as they are computed, one line per pair with a digest of what it depends on; a
later evaluation only computes the missing ones. `tokens.jsonl` has one line per pair of the current scores:

    {"model", "data", "id", "chosen": {"turns": [[[text, log-ratio or null], ...], ...], "template": log-ratio} or null,
     "rejected": the same}

A response also has `"rewards": [[reward or null, ...], ...]`, the reward after each piece, and `"reward"`, the reward
head's reward of the whole response, if the model has that head.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from hafrm.data import PairSet
from hafrm.errors import ModelError, NoMemoryError, first_line
from hafrm.evaluation.parts import PARTS_FOLDER
from hafrm.evaluation.scoring import PairScore, write_or_remove
from hafrm.losses import uses_reference
from hafrm.memory import enough_memory
from hafrm.models.identity import model_identity
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.models.remote import is_server
from hafrm.models.runinfo import run_info
from hafrm.models.scorers import HybridScorer
from hafrm.models.tokens import PrefixRewards, TokenRatios
from hafrm.pairs import PreferencePair
from hafrm.store import LineFile, parsed_lines

TOKENS_FILE = "tokens.jsonl"

_CHUNK = 8
"""Number of pairs whose log-ratios are computed at a time."""

_NO_TOKENS = "`--token_log_ratios 0` skips them."

_FORMAT = 2
"""Part of every digest; increase it when lines get more fields."""

_Key = tuple[str, str, str, str]
"""Digest of what a line depends on, model, data set and pair."""

Line = dict[str, Any]


def token_lines(
    folder: Path,
    scores: Sequence[PairScore],
    sets: Mapping[str, PairSet],
    choice: ScorerChoice,
    options: ScoreOptions,
    *,
    most: int,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[str, int], None] = lambda what, done: None,
) -> list[Line]:
    """Return the log-ratios of the tokens of the worst mistakes, computing those that the folder lacks.

    Args:
        options: How to run; special tokens are read as in training unless set otherwise.
        most: Maximum number of pairs for each model and data set.
        say: Called with a line if a model should have log-ratios but they can't be computed.
        progress: Called with "MODEL, tokens on DATA" and the number of finished pairs.
    """
    options = options.as_in_training()
    kept = _read_kept(folder / PARTS_FOLDER / TOKENS_FILE)
    lines: list[Line] = []
    for model in dict.fromkeys(score.model for score in scores):
        policy = _policy_choice(model, choice)
        if policy is None or not most:
            continue
        worst = _worst([score for score in scores if score.model == model], sets, most)
        try:
            with enough_memory("loading it with its reference", ""):
                lines += _model_lines(folder, model, policy, options, worst, kept, progress)
        except (ModelError, NoMemoryError) as error:  # keep the finished scores even if colouring fails
            remedy = f" {_NO_TOKENS}" if isinstance(error, NoMemoryError) else ""
            say(f"{model}: log-ratios of tokens can't be shown. {first_line(error)}{remedy}")
    if lines:
        LineFile(folder / PARTS_FOLDER / TOKENS_FILE).replace(lines)
    return lines


def _policy_choice(model: str, choice: ScorerChoice) -> ScorerChoice | None:
    """Return the options that select a model's policy head; None if it has no trained one or no reference."""
    # a plain ScorerChoice, without the fields that a command's options add
    policy = ScorerChoice(head="policy", reference=choice.reference, trust_remote_code=choice.trust_remote_code)
    if is_server(model):
        return None
    info = run_info(model)
    if info is None:
        return policy if choice.reference is not None and choice.head != "reward" else None
    referenced = choice.reference is not None or uses_reference(info.policy_loss)
    return policy if info.policy_ratio and referenced else None


def _worst(
    scores: Sequence[PairScore], sets: Mapping[str, PairSet], most: int
) -> list[tuple[str, str, PreferencePair]]:
    """Return the pairs with the lowest margins as (name of the data set, digest of all its pairs, pair)."""
    found = []
    for data, pair_set in sets.items():
        pairs = {pair.id: pair for pair in pair_set.pairs}
        digest = " ".join(report.sha256 for report in pair_set.reports)
        margins = sorted((s.margin, s.id) for s in scores if s.data == data and s.margin is not None)
        found += [(data, digest, pairs[id_]) for _, id_ in margins[:most]]
    return found


def _model_lines(
    folder: Path,
    model: str,
    choice: ScorerChoice,
    options: ScoreOptions,
    worst: Sequence[tuple[str, str, PreferencePair]],
    kept: dict[_Key, Line],
    progress: Callable[[str, int], None],
) -> list[Line]:
    """Return one model's lines; the model is only loaded if some are missing."""
    _require_here(model, choice)
    identity = model_identity(model, choice, options)
    wanted = [((_digest(identity, of_set), model, data, pair.id), pair) for data, of_set, pair in worst]
    if any(key not in kept for key, _ in wanted):
        scorer = choice.load(model, options)
        if not isinstance(scorer, HybridScorer):  # log-ratios need a policy head
            return []
        info = run_info(model)
        prefixes = info is not None and info.reward_weight != 0
        (folder / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)

        def computed() -> Iterator[Line]:
            for done, (key, line) in enumerate(_computed(scorer, wanted, set(kept), prefixes=prefixes), 1):
                yield line
                kept[key] = line
                progress(f"{model}, tokens on {line['data']}", done)

        LineFile(folder / PARTS_FOLDER / TOKENS_FILE).extend(computed(), at_once=True)
    return [kept[key] for key, _ in wanted]


def _computed(
    scorer: HybridScorer, wanted: Sequence[tuple[_Key, PreferencePair]], kept: Collection[_Key], *, prefixes: bool
) -> Iterator[tuple[_Key, Line]]:
    """Compute the lines that are not kept.

    Chunks are the same whatever is kept, since rounding depends on what a batch contains: a resumed evaluation has the
    lines of one that was not stopped.
    """
    for start in range(0, len(wanted), _CHUNK):
        chunk = wanted[start : start + _CHUNK]
        if all(key in kept for key, _ in chunk):
            continue
        talks = [conversation for _, pair in chunk for conversation in pair.conversations]
        rewards = scorer.prefix_rewards(talks) if prefixes else [None] * len(talks)
        sides = [_side(*found) for found in zip(scorer.token_log_ratios(talks), rewards, strict=True)]
        for (key, pair), chosen, rejected in zip(chunk, sides[::2], sides[1::2], strict=True):
            if key in kept:
                continue
            digest, model, data, _ = key
            head = {"depends_on": digest, "model": model, "data": data, "id": pair.id}
            yield key, {**head, "chosen": chosen, "rejected": rejected}


def _side(ratios: TokenRatios | None, rewards: PrefixRewards | None) -> dict[str, Any] | None:
    if ratios is None:
        return None
    if rewards is None:
        return asdict(ratios)
    after = [[value for _, value in pieces] for pieces in rewards.turns]
    return {**asdict(ratios), "rewards": after, "reward": rewards.reward}


def _require_here(model: str, choice: ScorerChoice) -> None:
    """Raise unless a run's reference is on this machine, since coloured text does not justify a download."""
    info = run_info(model)
    if choice.reference is not None or info is None or Path(base := info.base_model).is_dir():
        return
    try:
        snapshot = Path(snapshot_download(base, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError) as error:
        raise ModelError(
            f"{base}, from which it was trained, is not on this machine. Give its path with `--reference`."
        ) from error
    if not any(path.suffix in (".safetensors", ".bin") for path in snapshot.iterdir()):
        raise ModelError(f"The weights of {base}, from which it was trained, are not on this machine.")


def _digest(identity: Mapping[str, Any], of_set: str) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, identity, of_set], sort_keys=True).encode()).hexdigest()[:16]


def _read_kept(path: Path) -> dict[_Key, Line]:
    """Read the lines of earlier evaluations, except damaged ones."""
    LineFile(path).drop_half_line()
    lines = read_tokens(path)
    return {(line["depends_on"], line["model"], line["data"], line["id"]): line for line in lines}


def write_tokens(folder: Path, lines: Sequence[Line]) -> None:
    """Write `tokens.jsonl`, or delete an earlier one if there is nothing to write."""
    rows = [{name: value for name, value in line.items() if name != "depends_on"} for line in lines]
    write_or_remove(rows, folder / TOKENS_FILE)


def read_tokens(path: Path) -> list[Line]:
    """Read a file of log-ratios, except damaged lines; empty if there is no file."""
    return list(parsed_lines(path, _pair_line, remedy=None)) if path.is_file() else []


def _pair_line(line: Line) -> Line:
    if missing := {"model", "data", "id", "chosen", "rejected"} - set(line):
        raise KeyError(*missing)
    return line
