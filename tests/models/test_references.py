"""Three references that agree, and a cache that resumes, is shared and never mixes models."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from hafrm.encoding import ConversationEncoder, TokenGroup
from hafrm.models import references
from hafrm.models.layout import Layout
from hafrm.models.options import LoraOptions
from hafrm.models.references import (
    adapter_off_reference,
    frozen_copy_reference,
    precompute_reference,
    weights_digest,
)
from hafrm.models.starts import new_model
from hafrm.models.tokenizers import load_tokenizer
from hafrm.packing import pad_rows
from tests.tiny import save_tiny, some_pairs

PADDED = Layout(packed=False, pad_token_id=3)


@pytest.fixture
def lora_model(tmp_path: Path):
    base = save_tiny(tmp_path / "base")
    tokenizer = load_tokenizer(str(base))
    encoder = ConversationEncoder(tokenizer, 128)
    groups = [encoder.encode(pair.prompt, [pair.chosen, pair.rejected]) for pair in some_pairs(11)]
    return new_model(str(base), tokenizer, lora=LoraOptions(rank=4)), groups


def perturb(model) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def test_the_three_references_agree(lora_model, tmp_path: Path) -> None:
    """Precomputed, adapters off, and a frozen copy give the same numbers, whatever training has changed."""
    model, groups = lora_model
    precomputed = precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path)
    frozen = frozen_copy_reference(model)
    perturb(model)
    batch = pad_rows(groups, pad_token_id=3)
    off = adapter_off_reference(model)(batch)
    torch.testing.assert_close(off, frozen(batch), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(off.view(-1, 2).numpy(), precomputed, rtol=1e-5, atol=1e-4)
    assert not off.requires_grad
    assert not np.allclose(model(batch).log_probs.detach().view(-1, 2).numpy(), precomputed, atol=1e-2)


def test_the_cache_is_used_and_resumed(lora_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call computes nothing; only a lost part is computed again."""
    model, groups = lora_model
    monkeypatch.setattr(references, "_PART", 4)
    first = precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path)
    parts = sorted(tmp_path.glob("*/*.npz"))
    assert len(parts) == 3
    parts[1].unlink()
    calls: list[int] = []
    forward = type(model).forward

    def counted(self, batch, **options):
        calls.append(batch.num_sequences)
        return forward(self, batch, **options)

    monkeypatch.setattr(type(model), "forward", counted)
    again = precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path)
    assert 0 < sum(calls) <= 8
    calls.clear()
    more = [*groups[:3], TokenGroup(groups[0].prompt, (groups[0].responses[0], (5, 6)))]
    precompute_reference(model, more, layout=PADDED, batch_size=4, cache=tmp_path)
    assert calls == [1]  # another set computes only new responses
    np.testing.assert_array_equal(first, again)


def test_other_weights_have_another_fingerprint(lora_model) -> None:
    model, _ = lora_model
    name = references.fingerprint(model)
    with torch.no_grad():
        model.policy_head.weight[0, 0] += 1e-3
    assert references.fingerprint(model) != name


def test_adapters_and_data_sets_share_the_weights_digest(lora_model, tmp_path: Path) -> None:
    """A run without adapters, or with others, finds what this one cached, and so does a resumed one."""
    model, groups = lora_model
    base = str(tmp_path / "base")
    tokenizer = load_tokenizer(base)
    plain = new_model(base, tokenizer, lora=LoraOptions(), seed=1)
    wide = new_model(base, tokenizer, lora=LoraOptions(rank=8), seed=2)
    name = references.fingerprint(model)
    perturb(model)
    for other in (plain, wide, model):
        assert references.fingerprint(other) == name
        assert references.fingerprint(other, weights=weights_digest(plain)) == name
    first = precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path / "a")
    np.testing.assert_allclose(
        first, precompute_reference(plain, groups, layout=PADDED, batch_size=4, cache=tmp_path / "b"), atol=1e-5
    )


def test_a_known_digest_is_not_taken_again(lora_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups = lora_model
    known = weights_digest(model)
    monkeypatch.setattr(references, "weights_digest", None)
    precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path, weights=known)


def test_the_config_and_the_format_are_part_of_the_fingerprint(lora_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights with another rope, window or cap are another model; their location does not matter."""
    model, _ = lora_model
    name = references.fingerprint(model)
    model.config._name_or_path = "elsewhere"
    assert references.fingerprint(model) == name
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 5.0}
    other = references.fingerprint(model)
    assert other != name
    monkeypatch.setattr(references, "_FORMAT", references._FORMAT + 1)
    assert references.fingerprint(model) != other


def test_a_damaged_part_is_computed_again(lora_model, tmp_path: Path) -> None:
    model, groups = lora_model
    first = precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path)
    part = next(tmp_path.glob("*/*.npz"))
    whole = part.read_bytes()
    for damage in (whole[:100], b"", b"PK\x03\x04 no archive", pickle.dumps(first), flipped(whole, len(whole) // 2)):
        part.write_bytes(damage)
        again = precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path)
        np.testing.assert_array_equal(again, first)
        assert part.read_bytes() == whole


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 50.0, 1e30])
def test_what_no_log_prob_can_be_is_deleted_named_and_computed_again(value: float, lora_model, tmp_path: Path) -> None:
    """This includes an intact archive written by another program."""
    model, groups = lora_model
    first = precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path)
    part = next(tmp_path.glob("*/*.npz"))
    whole = part.read_bytes()
    with np.load(part) as stored:
        names, forged = stored["names"], stored["log_probs"]
    forged[-1] = value
    np.savez(part, names=names, log_probs=forged)
    said: list[str] = []
    again = precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path, say=said.append)
    np.testing.assert_array_equal(again, first)
    assert part.read_bytes() == whole
    assert len(said) == 1
    assert str(part) in said[0]


def test_a_folder_in_a_files_place_stops_nothing(lora_model, tmp_path: Path) -> None:
    model, groups = lora_model
    first = precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path)
    part = next(tmp_path.glob("*/*.npz"))
    part.unlink()
    part.mkdir()
    said: list[str] = []
    again = precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path, say=said.append)
    np.testing.assert_array_equal(again, first)
    assert said


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def test_no_flipped_bit_changes_a_number(lora_model, tmp_path: Path) -> None:
    model, groups = lora_model
    first = precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path)
    part = next(tmp_path.glob("*/*.npz"))
    whole = part.read_bytes()
    read = []
    for place in range(len(whole)):
        part.write_bytes(flipped(whole, place))
        read.append(references._read_part(part))
    assert sum(values is None for values in read) > first.nbytes
    for values in read:
        assert values is None or np.array_equal(np.sort(values.values), np.sort(first, axis=None))


def test_two_processes_share_one_cache(lora_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both compute concurrently, in parts of one group: they get the same numbers and leave no partial file."""
    model, groups = lora_model
    monkeypatch.setattr(references, "_PART", 1)
    context = multiprocessing.get_context("fork")
    together, found = context.Barrier(2), context.Queue()

    def compute() -> None:
        together.wait(timeout=30)
        values = precompute_reference(model, groups, layout=PADDED, batch_size=4, cache=tmp_path / "cache")
        found.put(values.tolist())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning about forking a process with threads
        processes = [context.Process(target=compute) for _ in range(2)]
        for process in processes:
            process.start()
    first, second = (found.get(timeout=60) for _ in range(2))
    for process in processes:
        process.join(timeout=30)
        assert process.exitcode == 0
    assert first == second
    assert len(list(tmp_path.glob("cache/*/*.npz"))) == len(groups)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".npz"]
