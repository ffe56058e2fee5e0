"""From what a study is like and what a machine can do to a complete job; pure rules, no files.

`choices` has the words they share and `machine` what a machine can afford; `grid` chooses the spacing,
`topology` patch and levels, `pacing` divides the budget, `rules` chooses the rest and joins all; `telling`
says what a study is like. `docs/planning.md` has the reasons and sources.
"""

from pipeline.planning.choices import Choice, PlannedJob
from pipeline.planning.machine import Machine
from pipeline.planning.pacing import pace
from pipeline.planning.rules import plan_job
from pipeline.planning.telling import describe_study

__all__ = ["Choice", "Machine", "PlannedJob", "describe_study", "pace", "plan_job"]
