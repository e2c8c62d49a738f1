"""Requests of clients of vLLM, SGLang, OpenAI and text-embeddings-inference, and servers with several models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hafrm.encoding import TokenGroup
from hafrm.errors import ConfigError
from hafrm.models.hybrid import HybridModel, new_reward_head
from hafrm.models.remote import RemoteScorer
from hafrm.models.scorers import HybridScorer
from hafrm.pairs import Conversation
from hafrm.serving.config import ServeConfig
from hafrm.serving.protocols import PROTOCOLS
from hafrm.serving.sharing import regrouped
from tests.overlays import overlay, told
from tests.serving.conftest import LIMIT, Wrapped, body, live, tiny_scorer
from tests.serving.test_protocols import CONVERSATIONS, rendered
from tests.tiny import tiny_tokenizer

RAW = {"use_activation": False}
PAIRS = [("How are you?", "Fine, thanks."), ("How are you?", "Go away.")]


@pytest.fixture(scope="module")
def expected(scorer: HybridScorer) -> list[float]:
    return [reward for reward in scorer.score([Conversation.of(*pair) for pair in PAIRS]) if reward is not None]


def posted(client: httpx.Client, path: str, sent: dict[str, Any]) -> Any:
    return client.post(path, json=sent).raise_for_status().json()


@pytest.mark.parametrize("each", PROTOCOLS, ids=lambda each: each.paths[0])
def test_the_example_of_every_protocol_is_answered_and_shown(each: Any, client: httpx.Client) -> None:
    for path in each.paths:
        assert client.post(path, json=each.example).status_code == 200
        assert path in client.get("/docs").text
    assert each.paths[0] in client.get("/openapi.json").json()["paths"]


def test_the_models_are_listed(client: httpx.Client) -> None:
    found = client.get("/v1/models").raise_for_status().json()
    assert [(card["id"], card["object"], card["max_model_len"]) for card in found["data"]] == [("tiny", "model", LIMIT)]
    assert client.get("/ping").status_code == 200
    assert re.fullmatch(r"\d+\.\d+.*", client.get("/version").json()["version"])


def test_openais_client_lists_models_and_reads_embeddings(address: str, expected: list[float]) -> None:
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        texts = [rendered(Conversation.of(*pair)) for pair in PAIRS]
        found = client.embeddings.create(model="tiny", input=texts)  # asks for base64
        assert [list(item.embedding) for item in found.data] == [pytest.approx([r], abs=1e-5) for r in expected]
        plain = client.embeddings.create(model="tiny", input=texts[0], encoding_format="float")
        assert plain.data[0].embedding == pytest.approx(expected[:1], abs=1e-5)


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize("names", [("queries", "documents"), ("queries", "items"), ("text_1", "text_2")], ids=str)
def test_vllm_scores_pairs(path: str, names: tuple[str, str], client: httpx.Client, expected: list[float]) -> None:
    texts = [text for _, text in PAIRS]
    for first in ("How are you?", ["How are you?"], ["How are you?"] * 2):
        found = posted(client, path, {names[0]: first, names[1]: texts} | RAW)
        assert [item["score"] for item in found["data"]] == pytest.approx(expected, abs=1e-5)
    found = posted(client, path, {names[0]: "How are you?", names[1]: texts[1]})
    assert 0 < found["data"][0]["score"] < 1
    assert client.post(path, json={names[0]: ["a", "b", "c"], names[1]: texts}).status_code == 400


def test_documents_are_texts_or_objects(client: httpx.Client) -> None:
    sent = {"query": "How are you?", "documents": [text for _, text in PAIRS]}
    objects = sent | {"documents": [{"text": text} for _, text in PAIRS]}
    assert posted(client, "/rerank", sent)["results"] == posted(client, "/rerank", objects)["results"]
    alone = posted(client, "/rerank", {"query": "How are you?", "documents": PAIRS[0][1]})
    assert [item["document"] for item in alone["results"]] == [{"text": PAIRS[0][1]}]


def test_tei_ranks_and_predicts(client: httpx.Client, expected: list[float]) -> None:
    """As in the types of TEI's router: ranks, the best first, and predictions for one input or for each."""
    sent = {"query": "How are you?", "texts": [text for _, text in PAIRS], "raw_scores": True, "return_text": True}
    found = posted(client, "/rerank", sent)
    assert {item["index"]: item["score"] for item in found} == pytest.approx(dict(enumerate(expected)), abs=1e-5)
    assert [item["text"] for item in found] == [PAIRS[item["index"]][1] for item in found]
    assert found[0]["score"] > found[1]["score"]
    text = rendered(Conversation.of(*PAIRS[1]))
    for inputs, rewards in (([text], expected[1:]), (text, expected[1:]), (list(PAIRS[0]), expected[:1])):
        (one,) = posted(client, "/predict", {"inputs": inputs, "raw_scores": True})
        assert one["score"] == pytest.approx(rewards[0], abs=1e-5)
    many = posted(client, "/predict", {"inputs": [list(PAIRS[0]), [text]], "raw_scores": True})
    assert [item["score"] for (item,) in many] == pytest.approx(expected, abs=1e-5)
    assert 0 < posted(client, "/predict", {"inputs": text})[0]["score"] < 1
    assert client.post("/predict", json={"inputs": ["a", "b", "c"]}).status_code == 422
    assert client.post("/predict", json={"inputs": []}).status_code == 422


def test_sglang_reads_rewards_as_embeddings(client: httpx.Client, expected: list[float]) -> None:
    """verl's request with SGLang, and SGLang's own `/classify`."""
    texts = [rendered(Conversation.of(*pair)) for pair in PAIRS]
    found = posted(client, "/v1/embeddings", {"model": "a/path", "input": texts[0].removeprefix("<s>")})
    assert found["data"][-1]["embedding"][-1] == pytest.approx(expected[0], abs=1e-5)
    found = posted(client, "/classify", {"model": "a/path", "text": texts})
    assert [item["embedding"][0] for item in found] == pytest.approx(expected, abs=1e-5)


def test_token_ids_of_tokenize_are_scored(client: httpx.Client, expected: list[float]) -> None:
    turns = [turn.as_dict() for turn in CONVERSATIONS[0].turns]
    found = posted(client, "/tokenize", {"messages": turns, "add_generation_prompt": False, "return_token_strs": True})
    own = tiny_tokenizer()
    ids = own.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert (found["tokens"], found["count"], found["max_model_len"]) == (ids, len(ids), LIMIT)
    assert found["token_strs"] == own.convert_ids_to_tokens(ids)
    assert posted(client, "/detokenize", {"tokens": ids})["prompt"] == own.decode(ids)
    for path, name in (("/classify", "probs"), ("/pooling", "data"), ("/v1/embeddings", "embedding")):
        for sent in (ids, [ids]):
            found = posted(client, path, {"input": sent} | ({} if path == "/v1/embeddings" else RAW))
            assert found["data"][0][name] == pytest.approx(expected[:1], abs=1e-5)
    prompted = posted(client, "/tokenize", {"messages": turns[:1]})["tokens"]
    assert prompted == own.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    plain = posted(client, "/tokenize", {"prompt": "Fine.", "add_special_tokens": False})["tokens"]
    assert plain == own("Fine.", add_special_tokens=False)["input_ids"]
    assert client.post("/detokenize", json={"tokens": [-1]}).status_code == 400
    assert client.post("/tokenize", json={}).status_code == 400


def test_a_lone_user_turn_is_scored_as_vllm_does(client: httpx.Client, scorer: HybridScorer) -> None:
    turns = [{"role": "user", "content": "How are you?"}]
    ids = tiny_tokenizer().apply_chat_template(turns, tokenize=True, return_dict=False)
    (expected,) = scorer.score_tokens([TokenGroup(tuple(ids[:-1]), (tuple(ids[-1:]),))])
    found = posted(client, "/classify", {"messages": turns} | RAW)
    assert found["data"][0]["probs"] == pytest.approx([expected], abs=1e-5)
    assert client.post("/classify", json={"messages": [{"role": "user", "content": " "}]}).status_code == 400


@pytest.mark.parametrize("limit", [-1, 40])
def test_a_request_may_ask_for_truncation(limit: int, client: httpx.Client) -> None:
    long = Conversation.of("How are you?", "word " * LIMIT)
    (expected,) = tiny_scorer(overlong="truncate", limit=LIMIT if limit == -1 else limit).score([long])
    messages = [turn.as_dict() for turn in long.turns]
    assert client.post("/classify", json={"messages": messages}).status_code == 400
    for sent in ({"messages": messages}, {"input": rendered(long)}):
        found = posted(client, "/classify", sent | {"truncate_prompt_tokens": limit} | RAW)
        assert found["data"][0]["probs"] == pytest.approx([expected], abs=1e-5)
    if limit == -1:
        sent = {"query": "How are you?", "texts": ["word " * LIMIT], "raw_scores": True}
        assert posted(client, "/rerank", sent | {"truncate": True})[0]["score"] == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def two(scorer: HybridScorer) -> Iterator[tuple[httpx.Client, dict[str, HybridScorer]]]:
    head = new_reward_head(
        scorer.model.stock_lm.config.hidden_size, init="normal", seed=2, dtype=scorer.model.stock_lm.dtype
    )
    other = HybridScorer(HybridModel(scorer.model.stock_lm, head).eval(), scorer.encoder, scorer.layout, scorer.options)
    scorers = {"first": scorer, "second": other}
    served = live(scorers=scorers, models=["first=none", "second=none"])
    with served as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client, scorers


def test_a_server_has_several_models_by_name(two: tuple[httpx.Client, dict[str, HybridScorer]]) -> None:
    client, scorers = two
    assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["first", "second"]
    text = rendered(CONVERSATIONS[0])
    for name, scorer in scorers.items():
        (reward,) = scorer.score(CONVERSATIONS[:1])
        answers = [
            posted(client, "/v1/rewards", body(CONVERSATIONS[0]) | {"model": name})["rewards"][0]["reward"],
            posted(client, f"/{name}/get_reward", {"query": [text]})["rewards"][0],
            posted(client, f"/{name}/v1/score/evaluation", {"model": "model", "messages": [text]})["scores"][0],
            posted(client, "/pooling", {"model": name, "input": text})["data"][0]["data"][0],
        ]
        assert answers == pytest.approx([reward] * 4, abs=1e-5)
        with closing(RemoteScorer(f"{str(client.base_url).rstrip('/')}/{name}/v1/rewards")) as remote:
            assert remote.score(CONVERSATIONS[:1]) == pytest.approx([reward], abs=1e-5)
    for asked, status in (({}, 400), ({"model": "third"}, 404)):
        answer = client.post("/get_reward", json={"query": [text], **asked})
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "unknown_model")
        assert "first, second" in answer.json()["error"]["message"]


def test_a_path_and_a_field_that_name_two_models_are_refused(two: tuple[httpx.Client, dict[str, HybridScorer]]) -> None:
    client, _ = two
    sent = {"query": [rendered(CONVERSATIONS[0])]}
    assert client.post("/first/get_reward", json=sent | {"model": "first"}).status_code == 200
    answer = client.post("/first/get_reward", json=sent | {"model": "second"})
    assert answer.status_code == 400
    assert "second" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"])
def test_a_models_name_takes_no_path_from_a_protocol(
    path: str, two: tuple[httpx.Client, dict[str, HybridScorer]]
) -> None:
    """`/v1/score` is a path of vLLM's, and would also be `/score` of a model named v1."""
    scorers = dict(zip(("v1", "v2"), two[1].values(), strict=True))
    pair = {"query": "How are you?", "documents": ["Fine."]}
    if path.endswith("score"):
        pair["queries"] = pair.pop("query")
    with live(scorers=scorers, models=["v1=none", "v2=none"]) as address, httpx.Client(base_url=address) as client:
        assert client.post(path, json=pair).json()["error"]["type"] == "unknown_model"
        for name, scorer in scorers.items():
            answer = posted(client, path, pair | RAW | {"model": name})
            (item,) = answer.get("data") or answer["results"]
            found = item.get("score", item.get("relevance_score"))
            assert [found] == pytest.approx(scorer.score([Conversation.of("How are you?", "Fine.")]), abs=1e-5)


def test_models_are_named_by_their_folders_or_as_given(tmp_path: Any) -> None:
    (tmp_path / "a=b").mkdir()
    folder = str(tmp_path / "a=b")
    assert ServeConfig(models=[folder, f"other={folder}"]).sources == {"a=b": folder, "other": folder}
    assert ServeConfig(models=["OWNER/NAME"]).sources == {"OWNER/NAME": "OWNER/NAME"}
    with pytest.raises(ConfigError, match="both named x"):
        ServeConfig(models=["x=one", "x=two"])


@pytest.mark.parametrize("path", ["/classify", "/get_reward"])
def test_texts_that_begin_alike_share_their_beginning(path: str, scorer: HybridScorer) -> None:
    """Eight responses to one prompt, each a request with a text that does not say where its response starts."""
    talks = [Conversation.of("How are you today, my friend? " * 4, f"Answer {'x' * i}") for i in range(8)]
    batches: list[list[TokenGroup]] = []

    def score(groups: list[TokenGroup]) -> list[float]:
        batches.append(list(groups))
        return scorer.score_tokens(groups)

    wrapped = Wrapped(scorer, score)
    wrapped.layout = scorer.layout  # type: ignore[attr-defined]
    sent = [{"query": [rendered(c)]} if path == "/get_reward" else {"input": rendered(c)} | RAW for c in talks]
    with live(wrapped) as address, ThreadPoolExecutor(8) as pool:  # type: ignore[arg-type]
        answers = list(pool.map(lambda data: httpx.post(f"{address}{path}", json=data, timeout=30).json(), sent))
    found = [a["rewards"][0] if path == "/get_reward" else a["data"][0]["probs"][0] for a in answers]
    assert found == pytest.approx(scorer.score(talks), abs=1e-5)
    shared = [batch for batch in batches if len(batch) > 1]
    assert shared
    assert all(len({group.prompt for group in batch}) == 1 for batch in shared)


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=12))
def test_regrouping_keeps_sequences_and_saves_tokens(sequences: list[list[int]]) -> None:
    groups = [TokenGroup(tuple(ids[:1]), (tuple(ids[1:]),)) for ids in sequences]
    found = regrouped(groups)
    assert [list(group.prompt + group.responses[0]) for group in found] == sequences
    assert all(group.prompt and group.responses[0] for group in found)
    assert tokens(found) <= sum(map(len, {tuple(ids) for ids in sequences}))


def tokens(groups: list[TokenGroup]) -> int:
    """Tokens that a model computes for distinct sequences whose equal prompts it encodes once."""
    distinct = {(group.prompt, group.responses[0]) for group in groups}
    return sum(len(prompt) for prompt in {p for p, _ in distinct}) + sum(len(response) for _, response in distinct)


def test_regrouping_separates_prompts_that_share_only_a_beginning() -> None:
    prompts = [(9, 9, *[i] * 20) for i in range(3)]
    found = regrouped([TokenGroup((9,), ((*prompt[1:], 50 + i, 51),)) for prompt in prompts for i in range(4)])
    assert tokens(found) == 3 * 22 + 12 * 2
    assert tokens(regrouped([TokenGroup((9,), ((*prompt[1:], 7),)) for prompt in prompts])) == 2 + 3 * 21


OPENRLHF = """
import asyncio, importlib.util, json, logging, pathlib, sys, types
place = pathlib.Path(importlib.util.find_spec("openrlhf").origin).parent / "utils" / "agent.py"
for name in ("openrlhf", "openrlhf.utils", "openrlhf.utils.logging_utils"):  # these import packages for GPUs
    sys.modules[name] = types.ModuleType(name)
sys.modules["openrlhf.utils.logging_utils"].init_logger = logging.getLogger
spec = importlib.util.spec_from_file_location("agent", place)
agent = importlib.util.module_from_spec(spec)
spec.loader.exec_module(agent)
address, _, texts = sys.argv[1], *map(json.loads, sys.argv[2:])
executor = agent.SingleTurnAgentExecutor(address + "/get_reward")
(answer,) = asyncio.run(executor._fetch_rewards_via_http(texts, texts, [""] * len(texts)))
print(json.dumps(answer["rewards"]))
"""
COHERE = """
import json, math, sys
import cohere
address, pairs = sys.argv[1], json.loads(sys.argv[2])
found = []
for client in (cohere.Client, cohere.ClientV2):
    asked = client(api_key="none", base_url=address)
    results = asked.rerank(model="any", query=pairs[0][0], documents=[text for _, text in pairs]).results
    found.append({item.index: math.log(item.relevance_score / (1 - item.relevance_score)) for item in results})
assert found[0] == found[1]
print(json.dumps([found[0][i] for i in range(len(pairs))]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "package", "others"),
    [
        pytest.param(OPENRLHF, "openrlhf==0.11.2", ["aiohttp"], id="OpenRLHF"),
        pytest.param(COHERE, "cohere==7.3.1", ["fastavro", "types-requests"], id="cohere"),
    ],
)
def test_their_own_clients_read_the_rewards(
    script: str, package: str, others: list[str], address: str, expected: list[float], tmp_path: Any
) -> None:
    packages = overlay(tmp_path / "packages", package)
    overlay(packages, *others, with_dependencies=True)
    texts = [rendered(Conversation.of(*pair)) for pair in PAIRS]
    found = told(script, address, json.dumps(PAIRS), json.dumps(texts), path=packages)
    assert found == pytest.approx(expected, abs=1e-4)


def test_docs_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert json.dumps(PROTOCOLS[1].example).replace('"', "&#34;") in page.text
