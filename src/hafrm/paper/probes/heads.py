"""Fit policy heads to frozen hidden states: min over K of E D2(K o phi) (the paper's Appendix D, claim 1).

Hidden states are computed once; only K is fitted, by L-BFGS on all pairs at once. The loss is not convex in K (a
log-ratio is a difference of convex functions), and if the pairs are separable it has no minimum, only an infimum at
infinity. Therefore a fit reports how flat the loss was where it stopped, and starts from several heads.

Shape letters: B pairs, S = 2B sequences, T response tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hafrm.encoding import TokenGroup
from hafrm.errors import TrainingError
from hafrm.logprobs import LogitTransform, linear_log_probs, sum_by_sequence
from hafrm.losses import PairLogProbs, PolicyLossOptions, named_policy_loss
from hafrm.models.hybrid import HybridModel
from hafrm.models.layout import Layout
from hafrm.models.modules import evaluating


@dataclass(frozen=True)
class FrozenStates:
    """Hidden states that predict the pairs' response tokens, pair by pair."""

    states: Tensor
    """Hidden states, [T, H]."""
    targets: Tensor
    """Response tokens, [T]."""
    lengths: Tensor
    """Number of response tokens per sequence, chosen before rejected, [S]."""
    transform: LogitTransform
    """How the model turns products of states and weights into logits."""


@dataclass(frozen=True)
class PolicyHead:
    """A linear map K from states to token scores."""

    weight: Tensor
    """Weight matrix, [V, H]."""
    bias: Tensor | None = None
    """Bias, [V], or None."""

    @classmethod
    def of(cls, model: HybridModel) -> PolicyHead:
        """Copy a model's own head."""
        bias = model.policy_head.bias
        return cls(model.policy_head.weight.detach().clone(), None if bias is None else bias.detach().clone())


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Options for fitting a policy head."""

    max_steps: int = 500
    """L-BFGS steps from each start."""

    tolerance: float = 1e-4
    """A fit has converged if no entry of the gradient is larger than this."""


@dataclass(frozen=True)
class Fit:
    """How a fit ended."""

    start: str
    """Name of the start from which the head was fitted."""
    loss: float
    """Mean D2 on the pairs it was fitted to."""
    start_losses: dict[str, float]
    """Mean D2 of each start before the fit."""
    gradient_norm: float
    """Euclidean norm of the objective's gradient."""
    gradient_max: float
    """Largest absolute entry of the gradient."""
    steps: int
    converged: bool
    """Whether `gradient_max` is within the tolerance. If not, `loss` exceeds the minimum by an unknown amount."""


@torch.no_grad()
def freeze_states(
    model: HybridModel, groups: Sequence[TokenGroup], layout: Layout, *, tokens: int = 8192, sequences: int = 64
) -> FrozenStates:
    """Compute hidden states of B pairs, in the order of the pairs, with a model in the state that the layout needs."""
    parts: dict[int, tuple[Tensor, Tensor, tuple[int, ...]]] = {}
    device = model.score.weight.device
    with evaluating(model):
        for rows in layout.plan(groups, sequences=sequences, tokens=tokens):
            batch = layout.batch([groups[row] for row in rows]).to(device)
            states = model.hidden_states(batch)[batch.predictor_index].float()
            sizes = [sum(map(len, groups[row].responses)) for row in rows]
            cut = zip(rows, states.split(sizes), batch.target_ids.split(sizes), strict=True)
            for row, part, targets in cut:
                parts[row] = part, targets, tuple(map(len, groups[row].responses))
    ordered = [parts[row] for row in range(len(groups))]
    return FrozenStates(
        torch.cat([states for states, _, _ in ordered]),
        torch.cat([targets for _, targets, _ in ordered]),
        torch.tensor([length for _, _, lengths in ordered for length in lengths], device=device),
        model.logit_transform,
    )


def head_losses(frozen: FrozenStates, head: PolicyHead, reference: Tensor, *, policy_loss: str, beta: float) -> Tensor:
    """Compute D2 of each pair, [B], differentiable in the head.

    Args:
        reference: Log-probs of both responses under the reference policy, [B, 2].
        beta: Its scale, the paper's tau.
    """
    bias = None if head.bias is None else head.bias.float()
    tokens = linear_log_probs(frozen.states, head.weight.float(), frozen.targets, bias=bias, transform=frozen.transform)
    sequences = len(frozen.lengths)
    index = torch.repeat_interleave(torch.arange(sequences, device=tokens.device), frozen.lengths)
    chosen, rejected = sum_by_sequence(tokens, index, sequences).view(-1, 2).unbind(1)
    chosen_length, rejected_length = frozen.lengths.view(-1, 2).unbind(1)
    pairs = PairLogProbs(chosen, rejected, reference[:, 0], reference[:, 1], chosen_length, rejected_length)
    return named_policy_loss(policy_loss)(pairs, PolicyLossOptions(beta=beta))


def fit_policy_head(
    frozen: FrozenStates,
    starts: Mapping[str, PolicyHead],
    reference: Tensor,
    *,
    policy_loss: str,
    beta: float,
    options: FitOptions,
) -> tuple[PolicyHead, Fit]:
    """Fit only K to frozen states from each start, by name, and return the best fit; see `head_losses`.

    Raises:
        TrainingError: no fit has a finite loss.
    """

    def mean_loss(head: PolicyHead) -> Tensor:
        return head_losses(frozen, head, reference, policy_loss=policy_loss, beta=beta).mean()

    with torch.no_grad():
        before = {name: mean_loss(start).item() for name, start in starts.items()}
    fits = [_fit_from(name, start, before, mean_loss, options) for name, start in starts.items()]
    finite = [fit for fit in fits if math.isfinite(fit[1].loss)]
    if not finite:
        raise TrainingError("The policy loss is not finite for any fitted head. Check the reference log-probs.")
    return min(finite, key=lambda fit: fit[1].loss)


def _fit_from(
    name: str,
    start: PolicyHead,
    before: dict[str, float],
    mean_loss: Callable[[PolicyHead], Tensor],
    options: FitOptions,
) -> tuple[PolicyHead, Fit]:
    given = [start.weight] if start.bias is None else [start.weight, start.bias]
    parameters = [each.detach().float().clone().requires_grad_() for each in given]
    head = PolicyHead(*parameters)
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=options.max_steps,
        max_eval=3 * options.max_steps,
        tolerance_grad=options.tolerance,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = mean_loss(head)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
        loss = closure().item()  # recomputes the gradient at the final parameters
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    largest = gradient.abs().max().item()
    fit = Fit(
        start=name,
        loss=loss,
        start_losses=before,
        gradient_norm=gradient.norm().item(),
        gradient_max=largest,
        steps=int(optimizer.state[parameters[0]]["n_iter"]),
        converged=largest <= options.tolerance,
    )
    return PolicyHead(*(each.detach() for each in parameters)), fit
