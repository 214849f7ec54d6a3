"""The contract that every part keeps, which anyone can run on a part of their own.

``check_part(MyLoss())`` runs every check of the role that the part plays and gives, for each, ``"passed"`` or why it
does not apply. ``check_exactness(MyLoss())`` holds it to the same numbers over processes, micro-batches, chunks,
``vmap`` and a resume.

Stands on ``catalog``.
"""

from lossworks.testing.contract import CONTRACT, Check, Row, check_part
from lossworks.testing.exactness import check_exactness
from lossworks.testing.inputs import build, example, from_data, instances
from lossworks.testing.ranks import Ranks

__all__ = [
    "CONTRACT",
    "Check",
    "Ranks",
    "Row",
    "build",
    "check_exactness",
    "check_part",
    "example",
    "from_data",
    "instances",
]
