"""`hafrm judge`: ask a judge about the rows of a file, write verdicts as they arrive, compute results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from hafrm import atomic
from hafrm.data.simulated import simulated_reward_name
from hafrm.errors import ModelError
from hafrm.judging.cache import ReplyCache
from hafrm.judging.judges import Judge, Unscored
from hafrm.judging.options import Budget, JudgeConfig, JudgeOptions
from hafrm.judging.prompts import PROMPT_VERSION
from hafrm.judging.rows import Item, Items, load_items, load_joined
from hafrm.judging.tournament import Plan, compare, play, rank_at_once, top_two_of_eight
from hafrm.judging.verdicts import HEADER_FILE, VERDICTS_FILE, Verdict, resume_verdicts, summarise, verdict_of
from hafrm.models.identity import model_identity
from hafrm.models.options import ScoreOptions, ScorerChoice
from hafrm.outputs import require_apart, require_results
from hafrm.pairs import PreferencePair
from hafrm.rewards import load_reward
from hafrm.store import LineFile, alone

RESULTS_FILE = "results.json"

_CHUNK = 64  # rows judged together; their verdicts are written once all of them are judged


def judge_rows(
    config: JudgeConfig,
    *,
    budget: Budget | None = None,
    progress: Callable[[int, int], None] = lambda done, rows: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Judge the rows that have no verdict yet, and write `verdicts.jsonl` and `results.json`.

    Args:
        budget: The limits at an endpoint, if several runs share them; by default those of the options.
        progress: Called with the number of rows that have a verdict, and the number of all rows.
        say: Called with a line if a stopped run is resumed.

    Returns:
        The contents of `results.json`: the result of `summarise`, and under `run` this run's requests and failures.

    Raises:
        ConfigError: the folder has other verdicts, is a model's, or is in use, or an option can't work.
        ModelError: the judge can't be asked at all.
    """
    require_apart(Path(config.out))
    written = (RESULTS_FILE, VERDICTS_FILE, HEADER_FILE)
    require_results(
        Path(config.out),
        config,
        written,
        RESULTS_FILE,
        ("judge", "judged", "mode"),
        parts=HEADER_FILE,
        by="hafrm judge",
    )
    if config.against is None:
        found = load_items(config.data, config.mode, config.data_options, split=config.split)
    else:
        found = load_joined(config.data, config.against, config.data_options)
    identity = _judge_identity(config)
    with alone(Path(config.out)):
        return _judge_items(config, found, identity, budget, progress, say)


def _judge_items(
    config: JudgeConfig,
    found: Items,
    identity: Mapping[str, Any],
    budget: Budget | None,
    progress: Callable[[int, int], None],
    say: Callable[[str], None],
) -> dict[str, Any]:
    folder = Path(config.out)
    verdicts = resume_verdicts(folder, _depends_on(config, found, identity), found.items)
    known = {verdict.key for verdict in verdicts}
    missing = [item for item in found.items if item.key not in known]
    if verdicts:
        say(f"{folder} has verdicts on {len(verdicts)} of {len(found.items)} rows; the run resumes with the others.")
    run: dict[str, Any] = {"stopped": None}
    if missing:
        run = _judge_missing(config, missing, verdicts, budget, lambda done: progress(done, len(found.items)))
    place = {item.key: number for number, item in enumerate(found.items)}
    verdicts.sort(key=lambda verdict: place[verdict.key])
    results = {
        "data": config.data,
        **({} if config.against is None else {"against": config.against}),
        "mode": config.mode,
        "judge": identity,
        **summarise(verdicts, rows=len(found.items)),
        "skipped": dict(found.skipped),
        "run": run,
    }
    atomic.write_json(folder / RESULTS_FILE, results)
    return results


def _judge_missing(
    config: JudgeConfig,
    missing: Sequence[Item],
    verdicts: list[Verdict],
    budget: Budget | None,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Judge rows, append the verdicts to the file and to `verdicts`, and return what the judge spent."""
    file = LineFile(Path(config.out) / VERDICTS_FILE)
    with closing(load_judge(config.judge, config, config.score, budget)) as judge:
        for start in range(0, len(missing), _CHUNK):
            new = _judge_chunk(config, judge, missing[start : start + _CHUNK])
            file.extend(map(asdict, new))
            verdicts += new
            progress(len(verdicts))
            if judge.stopped:
                break
        return {"stopped": judge.stopped, **judge.account}


def _judge_chunk(config: JudgeConfig, judge: Judge, items: Sequence[Item]) -> list[Verdict]:
    """Return verdicts on the items about which the judge was asked."""
    orders = [Random(f"{config.seed}/{item.key}").sample(range(n := len(item.responses)), n) for item in items]
    twice = judge.order_matters and config.judge.orders == "both"
    plans = [_plan(judge, item, order, both_orders=twice) for item, order in zip(items, orders, strict=True)]
    outcomes = play(judge, plans)
    return [
        verdict_of(item, outcome, order)
        for item, outcome, order in zip(items, outcomes, orders, strict=True)
        if outcome.ranking.unscored is not Unscored.STOPPED
    ]


def _plan(judge: Judge, item: Item, order: Sequence[int], *, both_orders: bool) -> Plan:
    responses = [item.responses[place] for place in order]
    if len(responses) == 2:
        return compare(item.prompt, responses, both_orders=both_orders)
    if len(responses) > judge.most_responses:
        return top_two_of_eight(item.prompt, responses)
    return rank_at_once(item.prompt, responses)


def load_judge(options: JudgeOptions, choice: ScorerChoice, score: ScoreOptions, budget: Budget | None = None) -> Judge:
    """Load a judge.

    Args:
        options: The judge.
        choice: How to load a reward model.
        score: How to run a reward model, or a causal LM in this process.
        budget: The limits at an endpoint, if several judges share them; by default those of the options.

    Raises:
        ModelError: a model can't be loaded.
    """
    if options.kind == "openai":
        from hafrm.judging.endpoint import EndpointJudge

        path = Path(options.cache) if options.cache else atomic.cache_folder("judge") / "replies.sqlite"
        return EndpointJudge(options, ReplyCache(path), budget or Budget.of(options))
    from hafrm.judging.local import RewardJudge, load_local_judge

    if options.kind == "local":
        return load_local_judge(options.model, score, trust_remote_code=choice.trust_remote_code)
    name = simulated_reward_name(options.model) if options.kind == "oracle" else options.model
    return RewardJudge(load_reward(name, choice, score))


def shares_of_wins(judge: Judge, pairs: Sequence[PreferencePair], orders: str) -> list[tuple[float, float] | None]:
    """Return 0.5 and the worse response's share of wins, by pair: 1, 0, or 0.5 for a tie. None: no verdict.

    Args:
        judge: The judge.
        pairs: The pairs.
        orders: `both`, or `one`, which is drawn by prompt; see `JudgeOptions.orders`.

    Raises:
        ModelError: the judge stopped, such as at the end of its budget.
    """
    twice = judge.order_matters and orders == "both"
    swapped = [not twice and Random(pair.group).random() < 0.5 for pair in pairs]
    asked = [(pair.chosen, pair.rejected)[:: -1 if swap else 1] for pair, swap in zip(pairs, swapped, strict=True)]
    plans = [compare(pair.prompt, each, both_orders=twice) for pair, each in zip(pairs, asked, strict=True)]
    outcomes = play(judge, plans)
    if judge.stopped:
        raise ModelError(f"The judge stopped: {judge.stopped}. The same command continues with the replies it has.")
    found: list[tuple[float, float] | None] = []
    for outcome, swap in zip(outcomes, swapped, strict=True):
        ranks = outcome.ranking.ranks
        if ranks is None:
            found.append(None)
            continue
        better, worse = ranks[::-1] if swap else ranks
        assert better is not None
        assert worse is not None
        found.append((0.5, 0.5 if better == worse else float(worse < better)))
    return found


def _depends_on(config: JudgeConfig, found: Items, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what verdicts depend on, under the names that messages use."""
    return {
        "judge": identity,
        "mode": config.mode,
        "seed": config.seed,
        "set of rows": found.sha256,
        "version of the prompts": PROMPT_VERSION,
        **({} if config.judge.orders == "both" else {"orders": config.judge.orders}),
    }


def _judge_identity(config: JudgeConfig) -> dict[str, Any]:
    """Describe the judge in plain values, without its API key."""
    options = config.judge
    identity: dict[str, Any] = {"kind": options.kind, "model": options.model}
    if options.kind == "openai":
        names = ("base_url", "temperature", "max_reply_tokens")
        return identity | {name: getattr(options, name) for name in names}
    if options.kind == "oracle":
        return identity
    if options.kind == "reward":
        return identity | model_identity(options.model, config, config.score)
    # A local judge only uses the policy head, without a reference.
    choice = ScorerChoice(head="reward", trust_remote_code=config.trust_remote_code)
    found = model_identity(options.model, choice, config.score)
    return identity | {name: value for name, value in found.items() if name not in ("head", "combined_weight")}
