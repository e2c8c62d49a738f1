"""Rewards for folders of rows, on Ray: many actors, one machine or several, and jobs that go on where they stopped.

`plan` cuts the input into parts, an actor (`actors`) scores a part and `output` writes it, each whole or not at all;
`run` is the driver. A part that is done is never scored again, and every row lands in exactly one file.
"""

from hafrm.scale.config import BulkConfig
from hafrm.scale.run import score_folder

__all__ = ["BulkConfig", "score_folder"]
