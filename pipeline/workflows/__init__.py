"""One function per command, each reading like a table of contents; the only place where rooms meet.

A module here is a command of the command line, or what stands behind one (`training`, one training of a
`cross_validation`; `serving`, MLflow's door to a registered model). What they share lies in rooms: `tasks`
(what each task has of its own), `runs` (what a run begins with and keeps), `applying` (of models to cases),
`sweeps`, `comparisons`, `reports`, `papers`. They print nothing: what they return, the command line shows.
"""
