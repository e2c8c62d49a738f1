"""Published benchmarks of reward models, in their own file formats and with their own scores."""

from hafrm.evaluation.suites.items import Item, ItemSet, ListScore, Suite
from hafrm.evaluation.suites.loading import SUITES, load_suite
from hafrm.evaluation.suites.summary import summarise_suite

__all__ = ["SUITES", "Item", "ItemSet", "ListScore", "Suite", "load_suite", "summarise_suite"]
