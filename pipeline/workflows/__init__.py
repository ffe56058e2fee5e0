"""One function per command, each reading like a table of contents; the only place where rooms meet.

`training` (with its `material`, what it is `keeping` and the `judging` at its end), `prediction`,
`evaluation`, `enhancing`, `comparing`, `reporting`, `checking`, `planning`, `estimating` (a dry run), `demo`,
`records` and `doctor`; `models` finds the checkpoint a person means.
They print nothing: what they return, the command line shows.
"""
