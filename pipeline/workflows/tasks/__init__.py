"""What each task has of its own in the commands: its material, its course, how it is judged.

`columns` says what a task has to have, `named` has the tasks by name; a file whose name begins with a task's
is that task's. `twins` and `regions` are other models that a job names; `subgroups` are figures by group.
"""
