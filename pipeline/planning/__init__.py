"""From what a study is like and what a machine can do to a complete job; pure rules, no files.

`choices` has the words they share, `machine` what a machine can afford, `grid` chooses the spacing, `topology`
patch and levels, `rules` the rest and joins them, `telling` says it for people. `docs/planning.md` gives each
rule with its reason and source.
"""

from pipeline.planning.choices import Choice, PlannedJob
from pipeline.planning.machine import Machine
from pipeline.planning.rules import pace, plan_job
from pipeline.planning.telling import describe_study

__all__ = ["Choice", "Machine", "PlannedJob", "describe_study", "pace", "plan_job"]
