"""Texts as clients send them (whole, generated, decoded, padded, cut) get the same reward as messages.

The oracle is the scorer's reward of the same conversation as messages, which other tests hold against stock classes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from hafrm.encoding import TokenGroup
from hafrm.frame import frame_of
from hafrm.models.scorers import HybridScorer
from hafrm.models.sources import stop_tokens
from hafrm.pairs import Conversation, Message, Prompt
from tests.serving.conftest import live, tiny_scorer
from tests.tiny import VOCABULARY, tiny_tokenizer

CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{{ '<s>assistant\n' if add_generation_prompt else '' }}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}"
    " {{ m.content | trim }} </s>{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{{ '<|assistant|>\n' if add_generation_prompt else '' }}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<unk>{{ m.content }}<unk>{% else %}"
    "{{ m.content }}</s>{% endif %}{% endfor %}"
)
"""The opening ends in a special token, as Mistral's does with [/INST]."""
PHI = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{{ '<s>assistant\n' if add_generation_prompt else eos_token }}"
)
"""The ending is a stop token, a line break, and the end-of-sequence token."""
SPACED = "{{ bos_token }} {% for m in messages %}{{ m.role }}: {{ m.content }}</s> {% endfor %}"
TEMPLATES = {
    "plain": None,
    "chatml": CHATML,
    "llama2": LLAMA2,
    "zephyr": ZEPHYR,
    "spaced": SPACED,
    "inst": INST,
    "phi": PHI,
}

CONVERSATIONS = [
    Conversation.of("How are you?", "Fine, thanks."),
    Conversation.of("How are you?", "Go  away .\n\nNow!"),
    Conversation(
        Prompt((Message("user", "1 < 2"), Message("assistant", "Yes."), Message("user", "And 3?"))),
        (Message("assistant", "It is\n1. odd\n2. prime"),),
    ),
]


def sentencepiece_like(template: str | None) -> Any:
    """Tokenizes as Llama-2's tokenizer does: spaces become marks, and each stretch of text gets one in front."""
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = [f"<0x{i:02X}>" for i in range(256)]
    pieces = ["▁", *map(chr, range(33, 127))]
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    if template is not None:
        fast.chat_template = template
    else:
        fast.chat_template = tiny_tokenizer().chat_template
    return fast


def byte_level(template: str | None) -> Any:
    return tiny_tokenizer(template=template) if template else tiny_tokenizer()


EVERYDAY = [(byte_level, "plain"), (byte_level, "chatml"), (byte_level, "llama2"), (sentencepiece_like, "llama2")]
ALL = [(kind, name) for kind in (byte_level, sentencepiece_like) for name in TEMPLATES]


@pytest.fixture(
    scope="module",
    params=[pytest.param(each, marks=[] if each in EVERYDAY else pytest.mark.slow) for each in ALL],
    ids=lambda param: f"{param[0].__name__}-{param[1]}",
)
def scorer(request: pytest.FixtureRequest) -> HybridScorer:
    kind, template = request.param
    tokenizer = kind(TEMPLATES[template])
    return tiny_scorer(tokenizer, vocabulary=max(VOCABULARY, len(tokenizer)))


def whole(tokenizer: Any, conversation: Conversation) -> str:
    return str(tokenizer.apply_chat_template([turn.as_dict() for turn in conversation.turns], tokenize=False))


def opening(tokenizer: Any, conversation: Conversation) -> str:
    messages = [turn.as_dict() for turn in conversation.prompt.turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def generated(tokenizer: Any, conversation: Conversation) -> str:
    """Return the text of a policy that stops at the end-of-turn token."""
    text = whole(tokenizer, conversation)
    end = text.rindex("</s>\n</s>") if text.endswith("</s>\n</s>") else text.rindex("</s>")
    return text[: end + len("</s>")]


def without_bos(found: list[int]) -> list[int]:
    return found[found[0] == 1 :]


FORMS: dict[str, Any] = {
    "whole": whole,
    "generated": generated,
    "decoded": lambda t, c: t.decode(ids(t, whole(t, c)), skip_special_tokens=False),
    "generated and decoded": lambda t, c: t.decode(ids(t, generated(t, c)), skip_special_tokens=False),
    "padded": lambda t, c: t.decode([3, 3, *ids(t, generated(t, c)), 3], skip_special_tokens=False),
    "padded with eos": lambda t, c: t.decode([*ids(t, generated(t, c)), 2, 2], skip_special_tokens=False),
    "ids": lambda t, c: ids(t, whole(t, c)),
    "generated ids": lambda t, c: ids(t, generated(t, c)),
    "padded ids": lambda t, c: [*ids(t, generated(t, c)), 2, 3],
    "left-padded ids": lambda t, c: [3, 3, *ids(t, generated(t, c))],
    "ids without BOS": lambda t, c: without_bos(ids(t, generated(t, c))),
    "left-padded ids without BOS": lambda t, c: [3, *without_bos(ids(t, whole(t, c)))],
    "decoded without BOS": lambda t, c: t.decode(without_bos(ids(t, whole(t, c)))),
    "messages": lambda t, c: [turn.as_dict() for turn in c.turns],
}


@pytest.fixture(scope="module")
def client(scorer: HybridScorer) -> Any:
    with live(scorer) as address, httpx.Client(base_url=address, timeout=30) as found:
        yield found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_reward_of_messages(form: str, scorer: HybridScorer, client: httpx.Client) -> None:
    tokenizer = scorer.encoder.tokenizer
    expected = scorer.score(CONVERSATIONS)
    assert len({round(reward or 0, 4) for reward in expected}) == 3
    sent = [FORMS[form](tokenizer, conversation) for conversation in CONVERSATIONS]
    answer = client.post("/get_reward", json={"query": sent}).raise_for_status().json()
    assert answer["rewards"] == pytest.approx(expected, abs=1e-5)
    answer = client.post("/v1/score/evaluation", json={"messages": sent}).raise_for_status().json()
    assert answer["scores"] == pytest.approx(expected, abs=1e-5)
    if form != "messages":
        for path, field in (("/classify", "probs"), ("/pooling", "data")):
            data = client.post(path, json={"input": sent, "use_activation": False}).raise_for_status().json()["data"]
            assert [item[field][0] for item in data] == pytest.approx(expected, abs=1e-5)
    assert "hafrm_unfinished_total 0.0" in client.get("/metrics").text


@pytest.mark.parametrize("decoded", [False, True], ids=["prompt", "decoded prompt"])
@pytest.mark.parametrize("form", ["generated", "decoded", "generated and decoded"])
def test_a_prompt_makes_no_reward_worse(form: str, decoded: bool, scorer: HybridScorer, client: httpx.Client) -> None:
    tokenizer = scorer.encoder.tokenizer
    prompts = [opening(tokenizer, conversation) for conversation in CONVERSATIONS]
    if decoded:
        prompts = [tokenizer.decode(ids(tokenizer, prompt), skip_special_tokens=False) for prompt in prompts]
    sent = {"query": [FORMS[form](tokenizer, conversation) for conversation in CONVERSATIONS], "prompts": prompts}
    answer = client.post("/get_reward", json=sent).raise_for_status().json()
    assert answer["rewards"] == pytest.approx(scorer.score(CONVERSATIONS), abs=1e-5)


def test_prompts_say_where_responses_begin(scorer: HybridScorer) -> None:
    """This makes scores of the response alone, such as implicit rewards, available for texts."""
    implicit = HybridScorer(
        scorer.model, scorer.encoder, scorer.layout, scorer.options, reward_weight=0.0, ratio_weight=1.0
    )
    tokenizer = scorer.encoder.tokenizer
    prompts = [opening(tokenizer, conversation) for conversation in CONVERSATIONS]
    with live(implicit) as address:
        for form in ("whole", "generated", "decoded", "generated and decoded"):
            sent = {"query": [FORMS[form](tokenizer, each) for each in CONVERSATIONS], "prompts": prompts}
            answer = httpx.post(f"{address}/get_reward", json=sent).raise_for_status().json()
            assert answer["rewards"] == pytest.approx(implicit.score(CONVERSATIONS), abs=1e-5), form


def test_a_cut_text_is_scored_as_cut_and_counted(scorer: HybridScorer) -> None:
    tokenizer = scorer.encoder.tokenizer
    cut = generated(tokenizer, CONVERSATIONS[0]).removesuffix("</s>").rstrip()[:-2]
    group = ids(tokenizer, cut)
    (expected,) = scorer.score_tokens([TokenGroup(tuple(group[:-1]), (tuple(group[-1:]),))])
    with live(scorer) as address, httpx.Client(base_url=address) as client:
        for sent in (cut, tokenizer.decode(group, skip_special_tokens=False), group):
            answer = client.post("/get_reward", json={"query": [sent]}).raise_for_status().json()
            assert answer["rewards"] == pytest.approx([expected], abs=1e-5)
        assert "hafrm_unfinished_total 3.0" in client.get("/metrics").text


def test_a_reranked_document_may_end_with_the_stop_token(scorer: HybridScorer, client: httpx.Client) -> None:
    documents = [f"Fine, thanks.{end}" for end in ("", "</s>", "</s><pad><pad>", "</s>\n<pad>", "<pad>")]
    data = {"query": "How are you?", "documents": documents, "use_activation": False}
    results = client.post("/rerank", json=data).raise_for_status().json()["results"]
    expected = scorer.score(CONVERSATIONS[:1])[0]
    assert [item["relevance_score"] for item in results] == pytest.approx([expected] * 5, abs=1e-5)


@pytest.mark.parametrize("sent", [[-1, 5], [5, 10**6]], ids=str)
def test_ids_out_of_the_vocabulary_have_no_reward(sent: list[int], client: httpx.Client) -> None:
    answer = client.post("/classify", json={"input": sent})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "wrong_type")
    assert "from 0 to" in answer.json()["error"]["message"]


@pytest.mark.parametrize("sent", ["", []], ids=str)
def test_inputs_without_tokens_to_score_are_refused_with_the_reason(sent: Any, client: httpx.Client) -> None:
    answer = client.post("/classify", json={"input": [sent]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "empty_response")
    assert "at least two" in answer.json()["error"]["message"]


def test_a_byte_level_tokenizer_is_lossless_and_a_sentencepiece_like_one_is_not() -> None:
    assert frame_of(byte_level(CHATML)).lossless
    assert not frame_of(sentencepiece_like(CHATML)).lossless


def test_the_frame_of_a_template_that_writes_behind_the_stop_token() -> None:
    frame = frame_of(byte_level(CHATML))
    assert (frame.bos, frame.ending, frame.stop, frame.trims) == ("<s>", "</s>\n", "</s>", False)
    frame = frame_of(byte_level(LLAMA2))
    assert (frame.bos, frame.ending, frame.stop, frame.trims) == ("<s>", " </s>", "</s>", True)


def test_models_that_are_read_at_the_stop_token_are_read_there_in_every_form(scorer: HybridScorer) -> None:
    encoder = replace(scorer.encoder, scored_at="stop_token")
    stopped = HybridScorer(scorer.model, encoder, scorer.layout, scorer.options)
    with live(stopped) as address:
        for form, write in FORMS.items():
            sent = [write(encoder.tokenizer, conversation) for conversation in CONVERSATIONS]
            answer = httpx.post(f"{address}/get_reward", json={"query": sent}).raise_for_status().json()
            assert answer["rewards"] == pytest.approx(stopped.score(CONVERSATIONS), abs=1e-5), form


OPEN = "{% for m in messages %}{{ '<unk>' if m.role == 'user' else '<s>' }}{{ m.content }}{% endfor %}"
"""Turns have no end token: a policy stops at the token that opens the user's next turn, as GLM's do."""


def test_a_token_that_opens_the_next_turn_ends_a_text() -> None:
    frame = frame_of(byte_level(OPEN))
    assert (frame.stop, frame.stops) == ("", ("<unk>",))
    text = "<unk>How are you?<s>Fine."
    sent = ids(frame.tokenizer, text)
    unknown = frame.tokenizer.unk_token_id
    for end, ended in (("", False), ("<unk>", True), ("<unk><pad>", True), ("</s>", True), ("<pad>", False)):
        assert frame.restored(text + end) == (text, None, ended)
        marks = ids(frame.tokenizer, end)
        assert frame.restored_ids([*sent, *marks]) == (sent, ended)
    assert frame_of(byte_level(OPEN), [unknown, 1]).stops == ("<unk>", "<s>")


def test_the_model_s_own_stop_tokens_end_a_text(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}', encoding="utf-8")
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}', encoding="utf-8")
    assert stop_tokens(str(tmp_path)) == [2, 0]
    frame = frame_of(byte_level(CHATML), stop_tokens(str(tmp_path)))
    assert frame.stops == ("<unk>",)
    assert frame.restored("<s>user\nHi</s>\n<s>assistant\nFine.<unk>") == (
        "<s>user\nHi</s>\n<s>assistant\nFine.</s>\n",
        None,
        True,
    )
