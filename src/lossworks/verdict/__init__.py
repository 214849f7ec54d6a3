"""Whether a difference is real: statistics on tables of scores, whatever it is that was scored.

Stands on ``metrics``.
"""

from lossworks.verdict.consensus import KEMENY_LIMIT, borda_ranking, kemeny_consensus, two_level_borda
from lossworks.verdict.judge import Judged, Judgement, Verdict, by_group, choose, judge, winner
from lossworks.verdict.paired import Paired, holm, paired_test

__all__ = [
    "KEMENY_LIMIT",
    "Judged",
    "Judgement",
    "Paired",
    "Verdict",
    "borda_ranking",
    "by_group",
    "choose",
    "holm",
    "judge",
    "kemeny_consensus",
    "paired_test",
    "two_level_borda",
    "winner",
]
