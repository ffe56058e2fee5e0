"""From what a study is like and what a machine can do to a complete job; pure rules, no files.

`choices` has the words they share and `machine` what a machine can afford; `grid` chooses the spacing,
`topology` patch and levels, `laterality` finds sides in names, `rules` chooses the rest and joins all;
`telling` says what a study is like. `docs/planning.md` gives each rule with its reason and source.
"""

from pipeline.planning.choices import Choice, PlannedJob
from pipeline.planning.machine import Machine
from pipeline.planning.rules import pace, plan_job
from pipeline.planning.telling import describe_study

__all__ = ["Choice", "Machine", "PlannedJob", "describe_study", "pace", "plan_job"]
