"""Whether a difference is real: statistics on tables of scores, whatever it is that was scored.

Stands on ``metrics``.
"""

from lossworks.verdict.consensus import KEMENY_LIMIT, borda_ranking, kemeny_consensus, two_level_borda
from lossworks.verdict.crossed import Crossed, Scores, crossed
from lossworks.verdict.family import step_down
from lossworks.verdict.forecast import chance_of_decision, rows_to_decide, variance_at
from lossworks.verdict.judge import Judged, Judgement, Verdict, by_group, choose, judge, winner
from lossworks.verdict.paired import Paired, holm, paired_test

__all__ = [
    "KEMENY_LIMIT",
    "Crossed",
    "Judged",
    "Judgement",
    "Paired",
    "Scores",
    "Verdict",
    "borda_ranking",
    "by_group",
    "chance_of_decision",
    "choose",
    "crossed",
    "holm",
    "judge",
    "kemeny_consensus",
    "paired_test",
    "rows_to_decide",
    "step_down",
    "two_level_borda",
    "variance_at",
    "winner",
]
