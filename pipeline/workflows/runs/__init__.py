"""What a run begins with and keeps, whatever its task: its start, its record, its checkpoints, its end.

`models` finds the checkpoint a person means, `starting` the weights a training starts from (`matching`),
`needs` what it takes; `recording` and `keeping` write, `resuming` reads what they wrote, `joining` makes one
model of folds.
"""
