"""Token ids are those of the stock chat template; prompts are shared; over-long groups follow one rule."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hafrm.encoding import ConversationEncoder, OverlongError, TokenGroup
from hafrm.errors import ConfigError, DataError
from hafrm.pairs import Message, Prompt
from hafrm.templates import DEFAULT_CHAT_TEMPLATE
from tests.tiny import tiny_tokenizer

STRICT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }};"
    "{% endfor %}"
)


def merging_tokenizer() -> Any:
    """Merges ": " into one token, so that the prompt's last character and the response's first become one."""
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), ":Ġ"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", "Ġ")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = DEFAULT_CHAT_TEMPLATE
    return fast


PLAIN, MERGING = tiny_tokenizer(), merging_tokenizer()
TOKENIZERS = {"plain": PLAIN, "merging": MERGING}


def user(text: str) -> Prompt:
    return Prompt.of(text)


def answer(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


def stock_ids(
    tokenizer: Any, prompt: Prompt, response: tuple[Message, ...] = (), *, opening: bool = False
) -> list[int]:
    return tokenizer.apply_chat_template(
        [message.as_dict() for message in (*prompt.turns, *response)], add_generation_prompt=opening, return_dict=False
    )


def test_the_plain_template_in_full() -> None:
    turns = (Message("system", "Be brief."), *user("Hi").turns, *answer("Hello"), *user("More").turns)
    rendered = PLAIN.apply_chat_template([turn.as_dict() for turn in turns], tokenize=False, add_generation_prompt=True)
    assert rendered == "<s>System: Be brief.\n\nHuman: Hi\n\nAssistant: Hello</s>\n\nHuman: More\n\nAssistant:"


def test_the_plain_template_needs_no_special_tokens() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=PLAIN.backend_tokenizer)
    bare.chat_template = DEFAULT_CHAT_TEMPLATE
    rendered = bare.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered == "Human: Hi"


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_prompt_and_response_together_are_the_stock_ids(tokenizer: Any) -> None:
    group = ConversationEncoder(tokenizer).encode(user("Hi"), [answer("yes"), answer("no")])
    for response, ids in zip(("yes", "no"), group.responses, strict=True):
        assert [*group.prompt, *ids] == stock_ids(tokenizer, user("Hi"), answer(response))


def test_a_token_merged_across_the_border_is_the_responses() -> None:
    plain = ConversationEncoder(PLAIN).encode(user("Hi"), [answer("yes")])
    merged = ConversationEncoder(MERGING).encode(user("Hi"), [answer("yes")])
    assert PLAIN.decode(plain.prompt) == "<s>Human: Hi\n\nAssistant:"
    assert MERGING.convert_ids_to_tokens(merged.prompt)[-1] == "t"
    assert MERGING.convert_ids_to_tokens(merged.responses[0]) == [":Ġ", "y", "e", "s", "</s>"]


def test_what_responses_share_is_not_the_prompts() -> None:
    group = ConversationEncoder(PLAIN).encode(user("Hi"), [answer("the one"), answer("the other")])
    assert PLAIN.decode(group.prompt).endswith("Assistant:")


def test_responses_keep_a_token_where_the_template_shows_none() -> None:
    tokenizer = tiny_tokenizer(template="{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    group = ConversationEncoder(tokenizer).encode(user("abc"), [answer("x"), answer("y")])
    assert tokenizer.decode(group.prompt) == "ab"
    assert [tokenizer.decode(ids) for ids in group.responses] == ["c", "c"]


# "<s>Human: Hi\n\nAssistant:" is 1 + 21 tokens; " yes</s>" 5 more, " no</s>" 4 more.
PROMPT_TOKENS, LONGEST = 22, 27


def encode(max_length: int, overlong: Any) -> TokenGroup:
    encoder = ConversationEncoder(PLAIN, max_length=max_length, overlong=overlong)
    return encoder.encode(user("Hi"), [answer("yes"), answer("no")])


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_a_group_of_just_the_limit_is_whole(overlong: str) -> None:
    assert encode(LONGEST, overlong).lengths == (LONGEST, LONGEST - 1)


@pytest.mark.parametrize(("limit", "prompt_alone"), [(26, False), (23, False), (22, True), (5, True)])
def test_drop_refuses_what_is_over_the_limit(limit: int, prompt_alone: bool) -> None:
    with pytest.raises(OverlongError) as caught:
        encode(limit, "drop")
    assert (caught.value.tokens, caught.value.limit, caught.value.prompt_alone) == (LONGEST, limit, prompt_alone)


def test_truncate_cuts_responses_at_their_end() -> None:
    whole, cut = encode(LONGEST, "truncate"), encode(24, "truncate")
    assert cut.prompt == whole.prompt
    assert cut.responses == (whole.responses[0][:2], whole.responses[1][:2])
    assert encode(26, "truncate").lengths == (26, 26)


def test_truncate_refuses_where_the_prompt_leaves_no_room() -> None:
    assert encode(PROMPT_TOKENS + 1, "truncate").lengths == (PROMPT_TOKENS + 1,) * 2
    with pytest.raises(OverlongError) as caught:
        encode(PROMPT_TOKENS, "truncate")
    assert caught.value.prompt_alone


def test_a_refusing_template_is_an_error_of_its_own_item_alone() -> None:
    encoder = ConversationEncoder(tiny_tokenizer(template=STRICT_TEMPLATE))
    refused = (Prompt((Message("system", "x"), *user("a").turns)), [answer("b")])
    before, error, after = encoder.encode_many([(user("a"), [answer("b")]), refused, (user("c"), [answer("d")])])
    assert isinstance(error, DataError)
    assert "no system turns" in str(error)
    assert before == encoder.encode(user("a"), [answer("b")])
    assert after == encoder.encode(user("c"), [answer("d")])
    with pytest.raises(DataError, match="no system turns"):
        encoder.encode(*refused)


def test_a_template_that_shares_no_beginning_is_refused() -> None:
    encoder = ConversationEncoder(tiny_tokenizer(template="{{ messages[-1].content }}"))
    with pytest.raises(DataError, match="only appends turns"):
        encoder.encode(user("a"), [answer("b")])


def test_equal_prompts_are_tokenized_once() -> None:
    class Counting:
        calls = texts = tokenized = 0
        added_tokens_decoder: ClassVar[dict[int, Any]] = {}
        all_special_tokens: ClassVar[list[str]] = []
        chat_template = None

        def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
            self.calls += 1
            self.texts += len(conversation)
            return PLAIN.apply_chat_template(conversation, **kwargs)

        def __call__(self, texts: list[str], **kwargs: Any) -> Any:
            self.tokenized += len(texts)
            return PLAIN(texts, **kwargs)

    tokenizer = Counting()
    encoder = ConversationEncoder(tokenizer)
    tokenizer.calls = tokenizer.texts = 0
    groups = encoder.encode_many((user("Hello"), [answer("Yes."), answer(f"No, {i}.")]) for i in range(5))
    assert len(groups) == 5
    assert tokenizer.tokenized == 1 + 1 + 5
    # One call per text would take a minute for 10,000 pairs. The third shows what the template writes around texts.
    assert (tokenizer.calls, tokenizer.texts) == (3, 1 + 1 + 5 + 1)


@pytest.mark.parametrize(
    "options", [{"max_length": 1}, {"max_length": -5}, {"overlong": "cut"}], ids=lambda options: str(options)
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="data_options"):
        ConversationEncoder(PLAIN, **options)


def test_groups_need_tokens() -> None:
    for prompt, responses in (((), ((1,),)), ((1,), ()), ((1,), ((2,), ()))):
        with pytest.raises(ValueError, match="at least one token"):
            TokenGroup(prompt, responses)


def test_unique_tokens_count_the_prompt_once() -> None:
    assert TokenGroup((1, 2, 3), ((4,), (5, 6))).unique_tokens == 6


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
groups = st.tuples(text.map(user), st.lists(text.map(answer), min_size=1, max_size=3))


def by_the_book(tokenizer: Any, limit: int, prompt: Any, responses: Any) -> TokenGroup | str:
    """Reimplement the rule with one stock call per text and one token at a time."""
    opening = stock_ids(tokenizer, prompt, opening=True)
    whole = [stock_ids(tokenizer, prompt, response) for response in responses]
    shared = 0
    while shared < len(opening) and all(shared < len(ids) - 1 and ids[shared] == opening[shared] for ids in whole):
        shared += 1
    if max(map(len, whole)) > limit and shared >= limit:
        return "prompt too long"
    return TokenGroup(tuple(opening[:shared]), tuple(tuple(ids[:limit][shared:]) for ids in whole))


@given(items=st.lists(groups, max_size=6), limit=st.integers(10, 60), name=st.sampled_from(sorted(TOKENIZERS)))
def test_many_at_once_are_what_each_is_alone(items: Any, limit: int, name: str) -> None:
    encoder = ConversationEncoder(TOKENIZERS[name], max_length=limit, overlong="truncate")
    for item, outcome in zip(items, encoder.encode_many(items), strict=True):
        expected = by_the_book(TOKENIZERS[name], limit, *item)
        if isinstance(expected, str):
            assert isinstance(outcome, OverlongError)
        else:
            assert outcome == expected == encoder.encode(*item)


def test_chunks_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hafrm.encoding._CHUNK", 3)
    items = [(user(f"question {i}"), [answer(str(i))]) for i in range(10)]
    encoder = ConversationEncoder(PLAIN)
    assert encoder.encode_many(items) == [encoder.encode(*item) for item in items]
    assert encoder.encode_many([]) == []
