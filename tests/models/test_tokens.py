"""Log-ratios of tokens equal the stock models' own numbers, and their pieces join to the response's text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from hafrm.encoding import ConversationEncoder
from hafrm.errors import ModelError
from hafrm.models.loading import load_scorer
from hafrm.models.options import ScoreOptions
from hafrm.models.scorers import HybridScorer
from hafrm.models.tokens import PrefixRewards, TokenRatios, align_with_text
from hafrm.pairs import Conversation, Message, Prompt
from hafrm.templates import DEFAULT_CHAT_TEMPLATE
from tests.tiny import save_tiny, tiny_tokenizer

TRIMMING = DEFAULT_CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
HARD = [
    "plain words",
    "  spaces  around ",
    "na\u00efve \U0001f469\u200d\U0001f680 \u65e5\u672c",
    "\u202eright to left",
    "</s> <s>",
    "a\n\n\tb",
    "Assistant: A",
]


def merging_tokenizer(template: str) -> Any:
    """A byte-level tokenizer with merges, whose post-processor excludes spaces from token offsets."""
    merges = [("Ġ", "w"), ("Ġw", "o"), ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("a", "i"), ("ð", "Ł"), (":", "Ġ")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<unk>", "<s>", "</s>", "<pad>", *letters, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **specials)


def byte_fallback_tokenizer(template: str) -> Any:
    """A tokenizer like Llama 2's: a space is U+2581, and unknown characters become bytes."""
    tokens = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdeinorstuwASH:"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [("▁", "w"), ("a", "n")]
    for merge in merges:
        vocabulary["".join(merge)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    specials = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **specials)


def plain_tokenizer(template: str) -> Any:
    return tiny_tokenizer(template=template)


TOKENIZERS = [
    make(template)
    for make in (plain_tokenizer, merging_tokenizer, byte_fallback_tokenizer)
    for template in (DEFAULT_CHAT_TEMPLATE, TRIMMING)
]


def laid(tokenizer: Any, conversation: Conversation, limit: int = 10**6) -> tuple[TokenRatios | None, list[float]]:
    """Return the pieces if each token's number is one larger than the previous one's, and these numbers."""
    encoder = ConversationEncoder(tokenizer, limit, "truncate")
    group = encoder.encode(conversation.prompt, [conversation.response])
    values = [float(number) for number in range(1, len(group.responses[0]) + 1)]
    return align_with_text(tokenizer, conversation, len(group.prompt), group.responses[0], values), values


def joined(ratios: TokenRatios) -> list[str]:
    return ["".join(text for text, _ in pieces) for pieces in ratios.turns]


def numbers(ratios: TokenRatios | PrefixRewards) -> list[float]:
    return [value for pieces in ratios.turns for _, value in pieces if value is not None]


def check(tokenizer: Any, text: str) -> None:
    ratios, values = laid(tokenizer, Conversation.of("What?", text))
    assert ratios is not None
    assert joined(ratios) == [text]
    assert all(piece for pieces in ratios.turns for piece, _ in pieces)
    assert sum(numbers(ratios)) + ratios.template == pytest.approx(sum(values))
    assert all(value is not None for piece, value in ratios.turns[0] if piece.strip())


@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=range(len(TOKENIZERS)))
def test_pieces_join_to_the_text(tokenizer: Any, text: str) -> None:
    check(tokenizer, text)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=range(len(TOKENIZERS)))
@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip))
def test_pieces_join_to_any_text(tokenizer: Any, text: str) -> None:
    check(tokenizer, text)


def test_a_piece_has_the_number_of_its_token() -> None:
    """Byte by byte: "a" is one token, the two bytes of "ï" add up; the space before and the end are the template's."""
    ratios, values = laid(TOKENIZERS[0], Conversation.of("What?", "aïb"))
    assert ratios is not None
    assert ratios.turns == ((("a", 2.0), ("ï", 3.0 + 4.0), ("b", 5.0)),)
    assert values == [1, 2, 3, 4, 5, 6]
    assert ratios.template == 1 + 6


def test_a_token_across_the_border_counts_for_the_text() -> None:
    ratios, _ = laid(TOKENIZERS[2], Conversation.of("What?", " word"))  # ": " and " wo" are tokens there
    assert ratios is not None
    assert [text for text, _ in ratios.turns[0]] == [" wo", "r", "d"]


def test_what_was_cut_off_has_no_number() -> None:
    ratios, values = laid(TOKENIZERS[0], Conversation.of("W", "abcdef"), limit=24)
    assert ratios is not None
    assert joined(ratios) == ["abcdef"]
    assert ratios.turns[0][-1] == ("abcdef"[len(values) - 1 :], None)
    assert len(values) < 6


def test_every_message_of_a_response_has_its_pieces() -> None:
    response = (Message("assistant", "a"), Message("user", "an a"), Message("assistant", "a n"))
    ratios, values = laid(TOKENIZERS[0], Conversation(Prompt((Message("user", "a"),)), response))
    assert ratios is not None
    assert joined(ratios) == ["a", "an a", "a n"]
    assert sum(numbers(ratios)) + ratios.template == sum(values)
    assert ratios.turns[0] == (("a", 2.0),)


def test_a_template_that_changes_texts_has_no_pieces() -> None:
    shouting = tiny_tokenizer(
        template=DEFAULT_CHAT_TEMPLATE.replace("message['content']", "message['content'] | upper")
    )
    assert laid(shouting, Conversation.of("What?", "words"))[0] is None


@pytest.fixture(scope="module")
def models_on_disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(save_tiny(folder / "policy", seed=1)), str(save_tiny(folder / "base", seed=2))


def stock_log_ratios(policy: str, base: str, conversation: Conversation) -> torch.Tensor:
    """Compute log-ratios of all tokens except the first with stock transformers."""
    messages = [message.as_dict() for message in conversation.turns]
    ids = AutoTokenizer.from_pretrained(policy).apply_chat_template(messages, return_dict=False, return_tensors="pt")
    both = [AutoModelForCausalLM.from_pretrained(name).eval()(ids).logits[0, :-1] for name in (policy, base)]
    ours, reference = (logits.log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1) for logits in both)
    return ours - reference


@pytest.mark.parametrize("layout", ["auto", "padded"])
@torch.no_grad()
def test_log_ratios_are_the_stock_models_own(layout: Any, models_on_disk: tuple[str, str]) -> None:
    policy, base = models_on_disk
    scorer = load_scorer(policy, head="policy", reference=base, options=ScoreOptions(layout=layout, batch_size=3))
    assert isinstance(scorer, HybridScorer)
    conversations = [Conversation.of("Why? " * (1 + i % 2), f"word {i} " * (i + 1)) for i in range(5)]
    conversations.append(Conversation.of("Why?", "x" * 2000))
    found = scorer.token_log_ratios(conversations)
    assert found.pop() is None
    rewards = scorer.score(conversations[:-1])
    for ratios, conversation, reward in zip(found, conversations[:-1], rewards, strict=True):
        assert ratios is not None
        expected = stock_log_ratios(policy, base, conversation)
        text = conversation.response[0].content
        end = len(expected) - 1  # the last token ends the turn
        np.testing.assert_allclose(numbers(ratios), expected[end - len(text) : end], rtol=0, atol=1e-4)
        assert [piece for piece, _ in ratios.turns[0]] == list(text)
        assert 0.1 * (sum(numbers(ratios)) + ratios.template) == pytest.approx(reward, abs=1e-4)


@torch.no_grad()
def test_parts_of_rewards_sum_to_them(models_on_disk: tuple[str, str]) -> None:
    """Parts are tau times log-ratios; both heads add a rest; without a reference they divide the mean log-prob."""
    policy, base = models_on_disk
    scorer = load_scorer(policy, head="policy", reference=base)
    assert isinstance(scorer, HybridScorer)
    scorer.model.score.weight.fill_(0.5)
    conversations = [Conversation.of("Why? " * (1 + i % 2), f"word {i} " * (i + 1)) for i in range(4)]
    conversations.append(Conversation.of("Why?", "x" * 2000))
    for reward_weight, reference in ((0.0, scorer.reference), (1.0, scorer.reference), (0.0, None)):
        scorer.reward_weight, scorer.reference = reward_weight, reference
        *found, overlong = scorer.token_rewards(conversations)
        assert overlong is None
        for each, conversation in zip(found, conversations, strict=False):
            assert each is not None
            assert each.divided
            (whole,) = scorer.score([conversation])
            assert each.reward == pytest.approx(whole, abs=1e-5)
            head = each.reward - sum(numbers(each)) - each.template
            (rewards,) = load_scorer_of_head(scorer).score([conversation])
            assert head == pytest.approx(reward_weight * rewards, abs=1e-4)
            if reference is not None:
                expected = 0.1 * stock_log_ratios(policy, base, conversation)
                text = conversation.response[0].content
                end = len(expected) - 1
                np.testing.assert_allclose(numbers(each), expected[end - len(text) : end], rtol=0, atol=1e-5)
    scorer.ratio_weight = 0.0
    with pytest.raises(ModelError, match="--head policy"):
        scorer.token_rewards([])


@pytest.mark.parametrize("layout", ["auto", "padded"])
@torch.no_grad()
def test_the_reward_head_alone_is_divided_by_prefix(layout: Any, models_on_disk: tuple[str, str]) -> None:
    """Sums of parts are rewards of texts cut at any token, computed from the stock model's states."""
    policy, base = models_on_disk
    options = ScoreOptions(layout=layout)
    scorer = load_scorer_of_head(load_scorer(policy, head="policy", reference=base, options=options))  # type: ignore[arg-type]
    scorer.model.score.weight.copy_(torch.linspace(-1, 1, 32)[None])
    scorer.by_prefix = True
    stock, tokenizer = AutoModelForCausalLM.from_pretrained(policy).eval(), AutoTokenizer.from_pretrained(policy)
    conversations = [Conversation.of("Why? " * (1 + i % 2), f"word {i} " * (i + 1)) for i in range(4)]
    prefixes = scorer.prefix_rewards(conversations)
    for each, after, talk in zip(scorer.token_rewards(conversations), prefixes, conversations, strict=True):
        assert each is not None
        assert after is not None
        messages = [message.as_dict() for message in talk.turns]
        ids = tokenizer.apply_chat_template(messages, return_dict=False, return_tensors="pt")
        rewards = (stock.model(ids).last_hidden_state[0] @ scorer.model.score.weight[0]).numpy()
        length = len(talk.response[0].content) + 1  # the last token ends the turn
        assert each.reward == pytest.approx(rewards[-1].item(), abs=1e-4)
        so_far = rewards[-length - 1] + np.cumsum(numbers(each))
        np.testing.assert_allclose(so_far, rewards[-length:-1], rtol=0, atol=1e-4)
        np.testing.assert_allclose(numbers(after), rewards[-length:-1], rtol=0, atol=1e-4)
        assert after.reward == pytest.approx(rewards[-1].item(), abs=1e-4)
        prompt = [message.as_dict() for message in talk.prompt.turns]
        start = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))
        assert sum(numbers(each)) + each.template == pytest.approx(float(rewards[-1] - rewards[start - 1]), abs=1e-4)


def load_scorer_of_head(scorer: HybridScorer) -> HybridScorer:
    return HybridScorer(scorer.model, scorer.encoder, scorer.layout, scorer.options)


@torch.no_grad()
def test_a_piece_of_several_tokens_has_the_reward_after_its_last(models_on_disk: tuple[str, str]) -> None:
    """This also holds for responses with several messages, with the template's tokens between them."""
    policy, base = models_on_disk
    scorer = load_scorer_of_head(load_scorer(policy, head="policy", reference=base))  # type: ignore[arg-type]
    scorer.model.score.weight.copy_(torch.linspace(-1, 1, 32)[None])
    response = (Message("assistant", "a\u00ef"), Message("user", "b"), Message("assistant", "c"))
    talk = Conversation(Prompt((Message("user", "What?"),)), response)
    (found,) = scorer.prefix_rewards([talk])
    assert found is not None
    assert [[text for text, _ in pieces] for pieces in found.turns] == [["a", "\u00ef"], ["b"], ["c"]]
    stock, tokenizer = AutoModelForCausalLM.from_pretrained(policy).eval(), AutoTokenizer.from_pretrained(policy)
    ids = tokenizer.apply_chat_template([turn.as_dict() for turn in talk.turns], return_dict=False)
    rewards = (stock.model(torch.tensor([ids])).last_hidden_state[0] @ scorer.model.score.weight[0]).tolist()
    spelt = "".join(token[0] for token in tokenizer.convert_ids_to_tokens(ids))  # a character for each byte
    place = spelt.index("a\u00c3\u00af")
    ends = [place, place + 2, spelt.rindex("b"), spelt.rindex("c")]
    assert numbers(found) == pytest.approx([rewards[end] for end in ends], abs=1e-4)


@torch.no_grad()
def test_what_can_not_be_aligned_is_whole(models_on_disk: tuple[str, str], tmp_path: Path) -> None:
    policy, base = models_on_disk
    scorer = load_scorer(policy, head="policy", reference=base)
    assert isinstance(scorer, HybridScorer)
    scorer.encoder.tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE.replace(
        "message['content']", "message['content'] | upper"
    )
    conversation = Conversation.of("Why?", "words")
    (found,) = scorer.token_rewards([conversation])
    assert found is not None
    assert not found.divided
    assert found.turns == ((("words", None),),)
    assert found.reward == pytest.approx(scorer.score([conversation])[0], abs=1e-6)


def test_there_are_none_without_a_reference(models_on_disk: tuple[str, str], tmp_path: Path) -> None:
    policy, base = models_on_disk
    scorer = load_scorer(policy, head="policy", reference=base)
    assert isinstance(scorer, HybridScorer)
    scorer.reference = None
    with pytest.raises(ModelError, match="--reference"):
        scorer.token_log_ratios([Conversation.of("a", "b")])
