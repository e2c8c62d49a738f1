"""Judges in this process: rewards, the world's oracle, and a causal LM by log-probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hafrm.data.simulated import SimulatedReward
from hafrm.errors import ConfigError, RefusedError, UnknownDataError
from hafrm.judging.judges import Answer, Question, Unscored, ranks_of
from hafrm.judging.local import RewardJudge, load_local_judge
from hafrm.judging.prompts import CHOICES, judge_messages
from hafrm.models.options import ScoreOptions
from hafrm.pairs import Conversation, Message, Prompt
from hafrm.paper.world import oracle_reward, world_pairs
from tests.tiny import save_tiny, tiny_tokenizer


def question(*responses: str) -> Question:
    return Question(Prompt.of("Which?"), tuple((Message("assistant", text),) for text in responses))


class Lengths:
    """Scores by length; gives `None` for over-long responses, and its template refuses a word."""

    def __init__(self) -> None:
        self.scored: list[str] = []

    def score(self, conversations: list[Conversation]) -> list[float | None]:
        texts = [conversation.response[0].content for conversation in conversations]
        if refused := {place: "no" for place, text in enumerate(texts) if "refuse" in text}:
            raise RefusedError(refused)
        self.scored += texts
        return [None if len(text) > 20 else float(len(text)) for text in texts]


@pytest.mark.parametrize(
    ("rewards", "ranks"), [([1, 2], (2, 1)), ([1, 1], (1, 1)), ([3, 1, 3, 2], (1, 4, 1, 3)), ([0.0, -0.0], (1, 1))]
)
def test_ranks_of_rewards(rewards: list[float], ranks: tuple[int, ...]) -> None:
    assert ranks_of(rewards) == ranks


def test_the_higher_reward_wins() -> None:
    scorer = Lengths()
    answers = RewardJudge(scorer).ask(
        [
            question("aa", "b"),
            question("a", "b"),
            question("x" * 30, "b"),
            question("refuse", "b"),
            question("b", "ccc", "aa"),
        ]
    )
    assert answers == [
        Answer(ranks=(1, 2)),
        Answer(ranks=(1, 1)),
        Answer(unscored=Unscored.OVERLONG),
        Answer(unscored=Unscored.REFUSED_BY_TEMPLATE),
        Answer(ranks=(3, 1, 2)),
    ]
    assert sorted(scorer.scored) == sorted({"aa", "b", "a", "x" * 30, "ccc"})  # each conversation once


def test_the_oracle_knows_the_better_answer() -> None:
    pairs = world_pairs("helpful", "test", size=40)
    answers = RewardJudge(SimulatedReward("world/helpful")).ask(
        [Question(p.prompt, (p.chosen, p.rejected)) for p in pairs]
    )
    for pair, answer in zip(pairs, answers, strict=True):
        better, worse = (oracle_reward(conversation, "helpful") for conversation in pair.conversations)
        assert answer.ranks == ((1, 2) if better > worse else (2, 1))
    with pytest.raises(UnknownDataError):
        SimulatedReward("world/helpfull")


@pytest.mark.parametrize("template", ["own", "no system"])
def test_a_causal_lm_judges_by_the_log_probs_of_the_two_answers(template: str, tmp_path: Path) -> None:
    """Stock transformers is the oracle: summed log-probs of both answers as the reply to the same prompt."""
    tokenizer = tiny_tokenizer()
    if template == "no system":
        tokenizer.chat_template = (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            + tokenizer.chat_template
        )
    folder = save_tiny(tmp_path / "lm", tokenizer=tokenizer, max_position_embeddings=4096)
    questions = [question("a rather good answer", "bad"), question("bad", "a rather good answer"), question("a", "b")]
    answers = load_local_judge(str(folder), ScoreOptions()).ask(questions)

    model, stock = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for asked, answer in zip(questions, answers, strict=True):
        system, user = judge_messages(asked)
        merged = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}]
        prompt = [system, user] if template == "own" else merged
        found = []
        for choice in CHOICES:
            reply = [{"role": "assistant", "content": choice}]
            ids = stock.apply_chat_template(prompt + reply, return_dict=True, return_tensors="pt")["input_ids"]
            start = len(stock.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
            with torch.no_grad():
                log_probs = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).squeeze(-1)
            found.append(log_probs[start - 1 :].sum().item())
        assert answer.ranks == ranks_of(found)
        assert abs(found[0] - found[1]) > 1e-4


def test_a_prompt_that_does_not_fit_is_unscored(tmp_path: Path) -> None:
    judge = load_local_judge(str(save_tiny(tmp_path / "lm")), ScoreOptions())  # 256 positions
    assert judge.ask([question("a", "b")]) == [Answer(unscored=Unscored.OVERLONG)]
    with pytest.raises(ConfigError, match="overlong"):
        load_local_judge(str(tmp_path / "lm"), ScoreOptions(overlong="truncate"))
