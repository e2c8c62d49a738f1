"""Each protocol in the shape of its consumer's own request, with the rewards of `hafrm score`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import httpx
import pytest

from hafrm.errors import ConfigError
from hafrm.models.scorers import HybridScorer
from hafrm.pairs import Conversation, Message, Prompt
from hafrm.serving.config import ServeConfig
from hafrm.serving.service import RewardService
from tests.serving.conftest import LIMIT, Wrapped, body, live, tiny_scorer
from tests.tiny import tiny_tokenizer

PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
CONVERSATIONS = [
    Conversation.of("How are you?", "Fine, thanks."),
    Conversation.of("How are you?", "Go away."),
    Conversation(
        Prompt((Message("system", "Be kind."), Message("user", "1"), Message("assistant", "2"), Message("user", "3"))),
        (Message("assistant", "four"),),
    ),
]


def rendered(conversation: Conversation, template: str | None = None) -> str:
    tokenizer = tiny_tokenizer(template=template) if template else tiny_tokenizer()
    messages = [turn.as_dict() for turn in conversation.turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


@pytest.fixture(scope="module")
def expected(scorer: HybridScorer) -> list[float]:
    rewards = scorer.score(CONVERSATIONS)
    assert len({round(reward or 0, 3) for reward in rewards}) == 3
    return [reward for reward in rewards if reward is not None]


def test_native(client: httpx.Client, expected: list[float], scorer: HybridScorer) -> None:
    answer = client.post("/v1/rewards", json=body(*CONVERSATIONS)).raise_for_status().json()
    assert answer["model"] == "tiny"
    assert [set(item) for item in answer["rewards"]] == [{"reward", "tokens", "truncated", "unscored", "fault"}] * 3
    assert [item["reward"] for item in answer["rewards"]] == pytest.approx(expected, abs=1e-5)
    lengths = [scorer.encoder.encode(c.prompt, [c.response]).unique_tokens for c in CONVERSATIONS]
    assert [item["tokens"] for item in answer["rewards"]] == lengths
    assert not any(item["truncated"] or item["unscored"] for item in answer["rewards"])
    assert client.post("/v1/rewards", json={"conversations": []}).json()["rewards"] == []


def test_rewards_of_tokens_are_those_of_bulk_scoring() -> None:
    """Token rewards equal those of `hafrm score --tokens`, also for truncated and refused conversations."""
    scorer = tiny_scorer(overlong="truncate", reward_weight=1.0, ratio_weight=0.5)
    talks = [*CONVERSATIONS, Conversation.of("Tell me all.", "word " * LIMIT)]
    expected = [asdict(each) for each in scorer.token_rewards(talks) if each]
    with live(scorer) as address:
        sent = body(*talks, Conversation.of("How are you?", " "))
        *found, empty = httpx.post(f"{address}/v1/rewards", json=sent | {"tokens": True}).json()["rewards"]
        plain = httpx.post(f"{address}/v1/rewards", json=sent).json()["rewards"]
        schema = httpx.get(f"{address}/openapi.json").json()["components"]["schemas"]
    assert (empty["unscored"], empty["token_rewards"]) == ("empty_response", None)
    assert [{**each, "token_rewards": None} for each in found] == [
        {**each, "reward": pytest.approx(each["reward"], abs=1e-5), "token_rewards": None} for each in plain[:-1]
    ]
    for each, other in zip(found, expected, strict=True):
        divided = each["token_rewards"]
        assert each["reward"] == divided["reward"] == pytest.approx(other["reward"], abs=1e-5)
        assert divided["template"] == pytest.approx(other["template"], abs=1e-5)
        pieces, others = ([piece for turn in turns for piece in turn] for turns in (divided["turns"], other["turns"]))
        assert [text for text, _ in pieces] == [text for text, _ in others]
        assert [value for _, value in pieces] == [value and pytest.approx(value, abs=1e-5) for _, value in others]
    assert "tokens" in schema["RewardsRequest"]["properties"]
    assert "token_rewards" in schema["DividedRewardBody"]["properties"]


def test_a_reward_head_has_no_rewards_of_tokens(client: httpx.Client) -> None:
    answer = client.post("/v1/rewards", json=body(*CONVERSATIONS) | {"tokens": True})
    assert answer.status_code == 400
    assert "--head policy" in answer.text


def test_a_conversation_without_a_reward_says_why(client: httpx.Client, expected: list[float]) -> None:
    odd = [
        Conversation.of("Tell me all.", "word " * LIMIT),
        Conversation.of("How are you?", " "),
        Conversation(Prompt((Message("user", "a"),)), (Message("user", "b"),)),
        CONVERSATIONS[0],
    ]
    found = client.post("/v1/rewards", json=body(*odd)).raise_for_status().json()["rewards"]
    assert [item["unscored"] for item in found] == ["overlong", "empty_response", "wrong_type", None]
    assert [item["reward"] for item in found[:3]] == [None] * 3
    assert found[0]["tokens"] > LIMIT
    assert found[3]["reward"] == pytest.approx(expected[0], abs=1e-5)


def test_openrlhf(client: httpx.Client, expected: list[float]) -> None:
    data = {"query": [rendered(c) for c in CONVERSATIONS], "prompts": ["How are you?"] * 3, "labels": ["", None, 3]}
    answer = client.post("/get_reward", json=data).raise_for_status().json()
    assert answer["rewards"] == pytest.approx(expected, abs=1e-5)
    assert answer["scores"] == answer["rewards"]
    assert answer["extra_logs"] == {}


def test_llama_factory(client: httpx.Client, expected: list[float]) -> None:
    data = {"model": "model", "messages": [rendered(c) for c in CONVERSATIONS]}
    answer = client.post("/v1/score/evaluation", json=data).raise_for_status().json()
    assert answer["scores"] == pytest.approx(expected, abs=1e-5)


def test_verl_reads_the_reward_from_vllms_classify(client: httpx.Client, expected: list[float]) -> None:
    """verl removes the beginning-of-sequence token, because vLLM would add it."""
    for conversation, reward in zip(CONVERSATIONS, expected, strict=True):
        for text in (rendered(conversation), rendered(conversation).removeprefix("<s>")):
            data = {"model": "any", "input": text, "use_activation": False}
            answer = client.post("/classify", json=data).raise_for_status().json()
            assert answer["data"][-1]["probs"][-1] == pytest.approx(reward, abs=1e-5)


def test_vllm_classify(client: httpx.Client, expected: list[float]) -> None:
    answer = client.post("/classify", json={"input": [rendered(c) for c in CONVERSATIONS]}).raise_for_status().json()
    assert set(answer) == {"id", "object", "created", "model", "data", "usage"}
    assert [set(item) for item in answer["data"]] == [{"index", "label", "probs", "num_classes"}] * 3
    probabilities = [1 / (1 + math.exp(-reward)) for reward in expected]
    assert [item["probs"][0] for item in answer["data"]] == pytest.approx(probabilities, abs=1e-5)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    messages = [turn.as_dict() for turn in CONVERSATIONS[2].turns]
    answer = client.post("/classify", json={"messages": messages, "use_activation": False}).raise_for_status().json()
    assert answer["data"][0]["probs"] == pytest.approx(expected[2:], abs=1e-5)


def test_vllm_pooling(client: httpx.Client, expected: list[float]) -> None:
    answer = client.post("/pooling", json={"input": [rendered(c) for c in CONVERSATIONS]}).raise_for_status().json()
    assert [item["data"][0] for item in answer["data"]] == pytest.approx(expected, abs=1e-5)
    assert {item["object"] for item in answer["data"]} == {"pooling"}


@pytest.mark.parametrize("path", ["/classify", "/pooling", "/rerank"])
@pytest.mark.parametrize(
    ("change", "default"),
    [
        ({"truncate_prompt_tokens": 0}, {"truncate_prompt_tokens": None}),
        ({"truncate_prompt_tokens": LIMIT + 1}, {"truncate_prompt_tokens": -1}),
        ({"normalize": True}, {"normalize": False}),
        ({"dimensions": 1}, {}),
        ({"add_generation_prompt": True}, {"add_generation_prompt": False}),
        ({"continue_final_message": True}, {"continue_final_message": False}),
        ({"chat_template": "{{ 'x' }}"}, {"chat_template": None}),
        ({"chat_template": ""}, {}),
        ({"truncation_side": "left"}, {"truncation_side": "right"}),
        ({"truncation_direction": "left"}, {"truncation_direction": "Right", "padding": "do_not_pad"}),
        ({"encoding_format": "base64"}, {"encoding_format": "float"}),
        ({"embed_dtype": "float16"}, {"embed_dtype": "float32", "endianness": "native"}),
        ({"task": "token_classify"}, {"task": "classify"}),
        ({"max_tokens_per_doc": 4}, {"max_tokens_per_doc": 0, "rank_fields": ["text"]}),
    ],
    ids=str,
)
def test_vllms_fields_that_would_change_a_score_are_not_passed_over(
    path: str, change: dict[str, object], default: dict[str, object], client: httpx.Client
) -> None:
    question, reply = (turn.as_dict() for turn in CONVERSATIONS[0].turns)
    data: dict[str, object] = {"messages": [question, reply]}
    if path == "/rerank":
        data = {"query": question["content"], "documents": [reply["content"]]}
    answer = client.post(path, json=data | change)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "unsupported")
    assert f"`{next(iter(change))}`" in answer.json()["error"]["message"]
    assert client.post(path, json=data | default).status_code == 200


def test_content_may_come_in_parts_of_text(client: httpx.Client, expected: list[float]) -> None:
    def parts(*texts: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": text} for text in texts]

    def reward(prompt: object, response: object) -> float:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        answer = client.post("/classify", json={"messages": messages, "use_activation": False}).raise_for_status()
        return float(answer.json()["data"][0]["probs"][0])

    assert reward(parts("How are you?"), parts("Fine, thanks.")) == pytest.approx(expected[0], abs=1e-5)
    assert reward(parts("How", "are you?"), "Fine.") == pytest.approx(reward("How\nare you?", "Fine."), abs=1e-5)
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    assert client.post("/classify", json={"messages": [{"role": "user", "content": image}]}).status_code == 422


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank(path: str, client: httpx.Client, expected: list[float]) -> None:
    data = {"model": "m", "query": "How are you?", "documents": ["Fine, thanks.", "Go away."], "use_activation": False}
    results = client.post(path, json=data).raise_for_status().json()["results"]
    assert {item["index"]: item["relevance_score"] for item in results} == pytest.approx(
        dict(enumerate(expected[:2])), abs=1e-5
    )
    assert results[0]["relevance_score"] > results[1]["relevance_score"]
    assert results[0]["document"] == {"text": data["documents"][results[0]["index"]]}
    best = client.post(path, json=data | {"top_n": 1}).json()["results"]
    assert best == results[:1]


def test_rerank_orders_what_its_activation_can_not_tell_apart(scorer: HybridScorer) -> None:
    """Sigma is 1 for rewards of 40 and more; the smallest ones keep their digits."""
    rewards = [40.0, 60.0, 50.0, -40.0, -41.0]
    data = {"query": "Which?", "documents": [f"{name} text" for name in "abcde"]}
    with live(Wrapped(scorer, lambda groups: rewards)) as address:
        results = httpx.post(f"{address}/rerank", json=data).raise_for_status().json()["results"]
        (best,) = httpx.post(f"{address}/rerank", json=data | {"top_n": 1}).raise_for_status().json()["results"]
    assert [item["index"] for item in results] == [1, 2, 0, 3, 4]
    assert best == results[0]
    shown = [item["relevance_score"] for item in results]
    assert shown == pytest.approx([1, 1, 1, math.exp(-40), math.exp(-41)], rel=1e-9)


@pytest.mark.parametrize(("query", "document"), [("", "Fine."), ("How are you?", " ")], ids=["query", "document"])
def test_rerank_holds_to_the_data_contract(query: str, document: str, client: httpx.Client) -> None:
    """What gets no reward elsewhere gets none in this protocol either."""
    answer = client.post("/rerank", json={"query": query, "documents": [document]})
    assert answer.status_code == 400
    native = client.post("/v1/rewards", json=body(Conversation.of(query, document))).raise_for_status().json()
    assert answer.json()["error"]["type"] == native["rewards"][0]["unscored"]


@pytest.mark.parametrize("data", [{}, {"input": "a", "messages": []}], ids=str)
def test_vllm_wants_one_of_input_and_messages(data: dict[str, object], client: httpx.Client) -> None:
    answer = client.post("/pooling", json=data)
    assert answer.status_code == 400
    assert "either" in answer.json()["error"]["message"]


def test_a_list_of_plain_numbers_has_no_place_for_a_missing_reward(client: httpx.Client) -> None:
    answer = client.post("/get_reward", json={"query": ["fine text", "word " * LIMIT]})
    assert answer.status_code == 400
    assert "Input 1 has no reward: overlong" in answer.json()["error"]["message"]


def test_a_template_without_a_beginning_token_gets_none() -> None:
    scorer = tiny_scorer(tiny_tokenizer(template=PLAIN))
    with live(scorer) as address:
        data = {"query": [rendered(c, PLAIN) for c in CONVERSATIONS]}
        answer = httpx.post(f"{address}/get_reward", json=data).raise_for_status().json()
    assert answer["rewards"] == pytest.approx(scorer.score(CONVERSATIONS), abs=1e-5)


def test_a_template_of_other_roles_still_serves_texts() -> None:
    """Conversations that can't be rendered have no reward; rendered texts are scored unchanged."""
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + PLAIN
    scorer = tiny_scorer(tiny_tokenizer(template=template))
    with live(scorer) as address:
        found = httpx.post(f"{address}/v1/rewards", json=body(*CONVERSATIONS)).raise_for_status().json()["rewards"]
        data = {"query": [rendered(CONVERSATIONS[2], PLAIN)]}
        answer = httpx.post(f"{address}/get_reward", json=data).raise_for_status().json()
    assert [item["unscored"] for item in found] == ["refused_by_template", "refused_by_template", None]
    assert answer["rewards"] == pytest.approx([found[2]["reward"]], abs=1e-5)
    assert scorer.score(CONVERSATIONS[2:]) == pytest.approx(answer["rewards"], abs=1e-5)


def test_a_model_that_runs_elsewhere_is_not_served() -> None:
    class Elsewhere:
        def score(self, conversations: Sequence[Conversation]) -> list[float | None]:
            return [0.0] * len(conversations)

    with pytest.raises(ConfigError, match="can't be served"):
        RewardService({"http://elsewhere": Elsewhere()}, ServeConfig(models=["http://elsewhere"]))


def test_overlong_texts_are_cut_where_the_rule_is_to_cut() -> None:
    scorer = tiny_scorer(overlong="truncate")
    long = Conversation.of("Tell me all.", "word " * LIMIT)
    (expected,) = scorer.score([long])
    with live(scorer) as address:
        (found,) = httpx.post(f"{address}/v1/rewards", json=body(long)).raise_for_status().json()["rewards"]
        texts = httpx.post(f"{address}/get_reward", json={"query": [rendered(long)]}).raise_for_status().json()
    assert found["reward"] == pytest.approx(expected, abs=1e-5)
    assert texts["rewards"] == pytest.approx([expected], abs=1e-5)
    assert found["truncated"]
    assert found["tokens"] > LIMIT


def test_a_cut_that_leaves_nothing_of_the_response_gives_no_reward() -> None:
    """The prompt alone fills the limit, in messages and in OpenRLHF's texts, which come with their prompts."""
    fits, fills = (Conversation.of("word " * n, "word " * LIMIT) for n in (3, LIMIT))
    prompts = [
        tiny_tokenizer().apply_chat_template(
            [turn.as_dict() for turn in c.prompt.turns], tokenize=False, add_generation_prompt=True
        )
        for c in (fits, fills)
    ]
    scorer = tiny_scorer(overlong="truncate")
    with live(scorer) as address, httpx.Client(base_url=address) as client:
        data = {"query": [rendered(fits), rendered(fills)], "prompts": prompts, "labels": ["", ""]}
        texts = client.post("/get_reward", json=data)
        messages = [turn.as_dict() for turn in fills.turns]
        for answer in (texts, client.post("/classify", json={"messages": messages})):
            assert (answer.status_code, answer.json()["error"]["type"]) == (400, "overlong")
            assert "Shorten the prompt" in answer.json()["error"]["message"]
            assert "--score.overlong" not in answer.json()["error"]["message"]
        assert "Input 1 " in texts.json()["error"]["message"]
        kept = client.post("/get_reward", json={"query": [rendered(fits)], "prompts": prompts[:1]})
        assert kept.raise_for_status().json()["rewards"] == pytest.approx(scorer.score([fits]), abs=1e-5)
        for unknown in (None, prompts, [None]):
            sent = {"query": [rendered(fits)], "prompts": unknown}
            assert client.post("/get_reward", json=sent).json()["rewards"] == kept.json()["rewards"]


def test_texts_that_were_cut_are_counted() -> None:
    """A truncated text without its prompt may have lost its whole response, which can't be detected."""
    with live(tiny_scorer(overlong="truncate")) as address, httpx.Client(base_url=address) as client:
        for path, data in (("/classify", {"input": "word " * LIMIT}), ("/v1/rewards", body(CONVERSATIONS[0]))):
            client.post(path, json=data).raise_for_status()
        assert "hafrm_truncated_total 1.0" in client.get("/metrics").text


def test_what_no_cut_would_help_is_not_advised_to_be_cut(client: httpx.Client) -> None:
    answer = client.post("/rerank", json={"query": "How are you?", "documents": [" "]})
    assert "truncate" not in answer.json()["error"]["message"]
    answer = client.post("/get_reward", json={"query": ["word " * LIMIT]})
    assert "`--score.overlong truncate`" in answer.json()["error"]["message"]


def test_implicit_rewards_need_messages() -> None:
    """Without its prompt, the start of a rendered text's response is unknown, so the request is refused."""
    scorer = tiny_scorer(reward_weight=0.0, ratio_weight=1.0)
    with live(scorer) as address:
        answer = httpx.post(f"{address}/get_reward", json={"query": [rendered(CONVERSATIONS[0])]})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "needs_messages")
        opening = tiny_tokenizer().apply_chat_template(
            [turn.as_dict() for turn in CONVERSATIONS[0].prompt.turns], tokenize=False, add_generation_prompt=True
        )
        sent = {"query": [rendered(CONVERSATIONS[0])], "prompts": [opening]}
        bordered = httpx.post(f"{address}/get_reward", json=sent).raise_for_status().json()
        found = httpx.post(f"{address}/v1/rewards", json=body(CONVERSATIONS[0])).raise_for_status().json()
    assert bordered["rewards"] == pytest.approx(scorer.score(CONVERSATIONS[:1]), abs=1e-5)
    assert found["rewards"][0]["reward"] == pytest.approx(scorer.score(CONVERSATIONS[:1])[0], abs=1e-5)
