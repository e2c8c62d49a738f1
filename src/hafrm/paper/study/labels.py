"""Display names of the study's parts and rows, in tables, figures and sentences."""

from __future__ import annotations

TITLES = {
    "table2": "Accuracy in domain",
    "ood": "Accuracy out of domain: trained on one set, tested on another of its category",
    "heads": "The two heads of HAF: the reward, the policy's implicit reward, and both together",
    "mixed": "Trained on an even mixture of all sets",
    "losses": "Which policy loss regularises best, at ratio 0.2",
    "ratios": "The policy loss's weight",
    "sizes": "The share of the training pairs",
    "priors": "Other reward losses than Bradley-Terry",
}
"""Display names of the parts."""

ROWS = {
    "haf": "HAF",
    "baseline": "Baseline",
    "dpo": "DPO",
    "words": "bag of words",
    "none": "no policy loss",
    "ipo": "IPO",
    "simpo": "SimPO",
    "sft": "SFT",
    "bradley_terry": "Bradley-Terry",
    "probit": "probit",
    "cauchy": "Cauchy",
    "hinge": "hinge",
}
"""Display names of the rows."""
