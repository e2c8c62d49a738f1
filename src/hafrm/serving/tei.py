"""The protocols of text-embeddings-inference: `/predict`, and `/rerank` with `texts`.

They return sigma(reward), or the reward itself if the request has `raw_scores: true`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field

from hafrm.serving.config import MAX_ITEMS
from hafrm.serving.messages import Bare, ConsumerRequest, Text, answered
from hafrm.serving.protocol import Protocol, best_first, shown
from hafrm.serving.reading import Input
from hafrm.serving.service import Scored

_One = Annotated[list[Text], Field(min_length=1, max_length=2)]


class PredictRequest(ConsumerRequest):
    """A rendered text, a pair of prompt and response, or a list of [text] and [prompt, response]."""

    inputs_: Annotated[
        Text | _One | Annotated[list[_One], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)],
        Field(validation_alias="inputs"),
    ]
    raw_scores: bool = False
    truncate: bool | None = None

    @property
    def limit(self) -> int | None:
        """See `ScoringRequest`."""
        return -1 if self.truncate else None

    @property
    def several(self) -> bool:
        """Whether the request has a list of inputs."""
        return isinstance(self.inputs_, list) and isinstance(self.inputs_[0], list)

    def inputs(self, bare: Bare) -> list[Input]:
        """Return the inputs to score."""
        items: Any = (
            self.inputs_ if self.several else [self.inputs_ if isinstance(self.inputs_, list) else [self.inputs_]]
        )
        return [item[0] if len(item) == 1 else answered(item[0], item[1], bare) for item in items]


class Prediction(BaseModel):
    """One class and its score."""

    score: float
    label: str = "LABEL_0"


def _predict(request: PredictRequest, scored: Scored) -> list[Prediction] | list[list[Prediction]]:
    """Score texts, or responses to prompts."""
    found = [[Prediction(score=value)] for value in shown(scored.rewards, activated=not request.raw_scores)]
    return found if request.several else found[0]


class TeiRanked(BaseModel):
    """One text with its index in the request."""

    index: int
    score: float
    text: str | None = None


def tei_ranking(texts: Sequence[str], rewards: Sequence[float], *, raw: bool, with_text: bool) -> list[TeiRanked]:
    """Return the texts' scores, the best first."""
    values = shown(rewards, activated=not raw)
    return [TeiRanked(index=i, score=values[i], text=texts[i] if with_text else None) for i in best_first(rewards)]


TEI = (
    Protocol(
        "text-embeddings-inference",
        ["/predict"],
        _predict,
        {"inputs": [["How are you?", "Fine, thanks."]], "raw_scores": True},
    ),
)
