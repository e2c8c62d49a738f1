"""What is put together to one cell."""

from __future__ import annotations

import pytest

from hafrm.errors import DataError
from hafrm.evaluation.scoring import PairScore
from hafrm.paper import measures


def test_scores_of_a_file_and_of_what_it_became_are_not_put_together() -> None:
    """A pair is known by its row; after a change the row may hold another prompt."""

    def scores(prompt: str) -> list[PairScore]:
        return [PairScore("m", "d", f"d:{row}", f"{prompt}{row}", 1.0, 0.0, 5, 5) for row in range(8)]

    old, new = (measures.measured([scores(prompt)], "BS, haf") for prompt in ("old", "new"))
    with pytest.raises(DataError, match=r"BS, haf: d:0 does not have the same prompt"):
        measures.measured([scores("old"), scores("new")], "BS, haf")
    with pytest.raises(DataError, match="not have the same prompt"):
        measures.relation({"haf": old, "baseline": new}, "baseline", backbone="b", trained_on="BS", tested_on="BS")
