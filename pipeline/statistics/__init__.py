"""What a handful of cases allows to say about all cases."""

from pipeline.statistics.differences import Difference, adjust_holm, compare_means, compare_shares
from pipeline.statistics.intervals import (
    NORMAL_95,
    UNKNOWN,
    Estimate,
    Interval,
    Summary,
    bootstrap_interval,
    estimate_share,
    interval_text,
    summarise,
)

__all__ = [
    "NORMAL_95",
    "UNKNOWN",
    "Difference",
    "Estimate",
    "Interval",
    "Summary",
    "adjust_holm",
    "bootstrap_interval",
    "compare_means",
    "compare_shares",
    "estimate_share",
    "interval_text",
    "summarise",
]
