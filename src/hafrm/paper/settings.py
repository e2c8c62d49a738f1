"""What needs no training: Tables 1, 5, 8, 9 and 10 and Figure 10, the paper's sets, settings, costs and prompts.

Each is computed from what the commands use, so that it shows what was run, next to what the paper prints.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

from hafrm.data import load_pairs
from hafrm.judging.judges import Answer, FreeJudge, Question, Response
from hafrm.judging.prompts import judge_messages
from hafrm.judging.tournament import Plan as Tournament
from hafrm.judging.tournament import compare, play, rank_at_once, top_two_of_eight
from hafrm.models.tokenizers import load_tokenizer
from hafrm.pairs import Message, PreferencePair, Prompt
from hafrm.paper import numbers
from hafrm.paper.plans import Plan
from hafrm.paper.runs import Policy, Run, expandable
from hafrm.paper.scales import Job
from hafrm.paper.tables import build_findings
from hafrm.report.findings import Findings, Table
from hafrm.training.defaults import training_arguments

_SAMPLE = 2000
"""Training pairs per set whose words and tokens are counted."""


def plan_sets(job: Job) -> Plan:
    """Plan nothing to train; `hafrm data show` counts the same pairs."""
    shown = job.scale.backbone(job.backbones[0]).shown
    words = (["hafrm", "data", "show", job.scale.sets[name].train, "--tokenizer", shown] for name in job.sets)
    return Plan(commands=tuple(expandable(shlex.join(each)) for each in words))


def find_sets(job: Job) -> Findings:
    """Build Table 1: pairs of each set before and after the draw of validation pairs, and lengths."""
    tokenizer = load_tokenizer(job.model(job.backbones[0]))
    sizes = {name: _size_of(job, name, tokenizer) for name in job.sets}
    columns = ("set", "training and validation", "training", "validation", "test", "words per QA", "tokens per QA")
    rows = tuple(
        (name, *(f"{each[part]:,}" for part in ("both", "train", "validation", "test")), *_lengths(each))
        for name, each in sizes.items()
    )
    printed = tuple(
        (name, f"{numbers.TABLE_1[name].size:,}", "–", "–", "–", *_lengths(asdict(numbers.TABLE_1[name])))
        for name in sizes
    )
    return build_findings(
        job,
        "table1",
        results={"sizes": sizes},
        tables=(Table("Ours", columns, rows), Table("The paper's Table 1", columns, printed)),
        left_out={name: each["dropped"] for name, each in sizes.items()},
    )


def _lengths(size: Mapping[str, Any]) -> tuple[str, str]:
    return f"{size['words']:.1f}", f"{size['tokens']:.1f}"


def _size_of(job: Job, name: str, tokenizer: Any) -> dict[str, Any]:
    files = job.scale.sets[name]
    found = {split: load_pairs(getattr(files, split), split=split) for split in ("train", "validation", "test")}
    counts = {split: len(each.pairs) for split, each in found.items()}
    dropped = {reason: count for reason, count in found["train"].reports[0].dropped.items() if "_split" not in reason}
    sample = found["train"].pairs[:_SAMPLE]
    return {
        **counts,
        "both": counts["train"] + counts["validation"],
        "words": fmean(_length(pair, str.split) for pair in sample),
        "tokens": fmean(
            _length(pair, lambda text: tokenizer(text, add_special_tokens=False).input_ids) for pair in sample
        ),
        "dropped": dropped,
    }


def _length(pair: PreferencePair, parts: Callable[[str], Sequence[Any]]) -> float:
    """Count the parts (words or tokens) of a question with an answer, averaged over its two answers."""
    question, *answers = (
        sum(len(parts(turn.text)) for turn in turns) for turns in (pair.prompt.turns, pair.chosen, pair.rejected)
    )
    return question + fmean(answers)


def find_setup(job: Job) -> Findings:
    """Build Table 5: the settings that the runs of this scale use, next to the paper's."""
    ours = {name: dict(_settings(job, name)) for name in job.backbones}
    rows = [
        (setting, printed, *(each[setting] for each in ours.values())) for setting, printed in numbers.TABLE_5.items()
    ]
    return build_findings(
        job,
        "table5",
        results={"settings": ours, "paper": dict(numbers.TABLE_5)},
        tables=(Table("Settings", ("setting", "the paper", *ours), rows),),
    )


def _settings(job: Job, backbone: str) -> Iterator[tuple[str, str]]:
    """Yield a backbone's settings as they would be used here, by the names in `numbers.TABLE_5`."""
    run = Run(backbone=backbone, sets=job.sets[:1], method="haf", seed=job.seeds[0])
    config = run.config(job, model=backbone)
    half = [name for name in ("fp16", "bf16") if config.training.get(name)]
    plain = {name: value for name, value in config.training.items() if name not in half}  # a GPU may be missing here
    args = training_arguments(replace(config, training=plain), pairs=1)
    rates = {method: replace(run, method=method).learning_rate(job) for method in ("haf", "baseline", "dpo")}
    ppo = Policy(backbone=backbone, sets=job.sets[:1], rewarded_by="haf", seed=job.seeds[0]).config(job, model=backbone)
    evaluated = args.eval_steps or 1
    values: dict[str, Any] = {
        "lora rank": config.lora.rank or "no adapters",
        "lora alpha": config.lora.alpha if config.lora.enabled else "no adapters",
        "training steps": args.max_steps,
        "evaluation steps": f"{evaluated / args.max_steps:g} of the steps",
        "batch size": args.per_device_train_batch_size,
        "optimizer": "AdamW" if args.optim.startswith("adamw") else args.optim,
        "adam_beta1": args.adam_beta1,
        "adam_beta2": args.adam_beta2,
        "weight_decay": args.weight_decay,
        "adam_epsilon": args.adam_epsilon,
        "precision": half[0] if half else "bf16 or float32, by the machine",
        "max gradient norm": args.max_grad_norm,
        "max sequence length": config.data_options.max_length,
        "global random seed": args.seed,
        "framework": "PyTorch",
        "policy ratio": config.resolved_loss.policy_ratio,
        "tau (DPO's beta)": config.resolved_loss.beta,
        "learning rate": ", ".join(f"{method} {rate:g}" for method, rate in rates.items()),
        "PPO: batch size": ppo.batch_size,
        "PPO: new tokens": ppo.sampling.max_new_tokens,
        "PPO: learning rate": f"{ppo.learning_rate:g}",
        "PPO: episodes": f"{ppo.steps * ppo.batch_size:,}",
        "PPO: top_p": ppo.sampling.top_p,
    }
    yield from ((name, f"{value:g}" if isinstance(value, float) else str(value)) for name, value in values.items())


class _ByNumber(FreeJudge):
    """A judge that prefers responses in the order of their numbers, and remembers what it was shown."""

    most_responses = 8
    order_matters = False

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        answers = []
        for question in questions:
            shown = tuple(response[0].text for response in question.responses)
            self.asked.append(shown)
            answers.append(Answer(ranks=tuple(sorted(shown, key=int).index(text) + 1 for text in shown)))
        return answers


def _responses(numbers_of: Iterable[int]) -> list[Response]:
    return [(Message("assistant", str(number)),) for number in numbers_of]


_PROMPT = Prompt((Message("user", "?"),))


def _played(plan: Tournament) -> tuple[list[tuple[str, ...]], tuple[int | None, ...]]:
    """Return the questions that a plan asks, and its ranks."""
    judge = _ByNumber()
    (outcome,) = play(judge, [plan])
    return judge.asked, outcome.ranking.ranks or ()


def find_ranking_costs(job: Job) -> Findings:
    """Build Table 8: the cost of rankings by the paper's count, and the questions that `hafrm judge` asks for them."""
    eight = _responses((5, 3, 8, 1, 7, 2, 6, 4))
    ours = {
        "compare two, in both orders": compare(_PROMPT, eight[:2]),
        "compare two, in one order": compare(_PROMPT, eight[:2], both_orders=False),
        "rank four at once": rank_at_once(_PROMPT, eight[:4]),
        "best two of eight, by rankings of four": top_two_of_eight(_PROMPT, eight),
        "rank eight at once": rank_at_once(_PROMPT, eight),
    }
    asked = {name: _played(plan)[0] for name, plan in ours.items()}
    rows = [(name, str(len(each)), str(len(each[0])), str(sum(map(len, each)))) for name, each in asked.items()]
    cells = list(next(iter(numbers.TABLE_8.values())))
    printed = [
        (way, *(f"{costs[cell].printed} = {costs[cell].queries}×{costs[cell].responses}" for cell in cells))
        for way, costs in numbers.TABLE_8.items()
    ]
    return build_findings(
        job,
        "table8",
        results={"questions": {name: [list(each) for each in found] for name, found in asked.items()}},
        tables=(
            Table("Ours", ("", "questions", "responses each", "responses in all"), rows),
            Table("The paper's Table 8", ("", *(f"{target} of {of}" for target, of in cells)), printed),
        ),
    )


def find_tournament(job: Job) -> Findings:
    """Build Figure 10: the three questions that find the best two of eight, by an example."""
    asked, ranks = _played(top_two_of_eight(_PROMPT, _responses((5, 3, 8, 1, 7, 2, 6, 4))))
    names = ("first group", "second group", "the best two of each")
    rows = tuple(
        (name, ", ".join(shown), ", ".join(sorted(shown, key=int)[:2]))
        for name, shown in zip(names, asked, strict=True)
    )
    return build_findings(
        job,
        "figure10",
        results={"questions": [list(each) for each in asked], "ranks": list(ranks)},
        tables=(Table("Responses, named by their true rank", ("question", "shown", "best two"), rows),),
    )


def find_prompt(job: Job, name: str) -> Findings:
    """Show Table 9's or 10's prompt, to compare two responses or to rank four, as `hafrm judge` sends it."""
    names = ("response 1", "response 2") if name == "table9" else tuple(f"output_{place}" for place in range(1, 5))
    responses = tuple((Message("assistant", f"{{{each}}}"),) for each in names)
    messages = judge_messages(Question(Prompt((Message("user", "{question}"),)), responses))
    rows = tuple((message["role"], line or " ") for message in messages for line in message["content"].splitlines())
    return build_findings(
        job, name, results={"messages": messages}, tables=(Table("The prompt", ("role", "line"), rows),)
    )
