"""clinseg: train, compare and apply segmentation models on clinical volumes.

Floor plan, in the order of the flow: `cli` parses and calls one function of `workflows`, the only place
where rooms meet. `config` is the typed job, `volume` the geometry. `data` finds, checks and serves cases;
`networks` holds networks; `training` fits them; `inference` applies them to full volumes; `export` writes
masks; `report` draws. `checkpoint`, `metrics`, `statistics` and `tracking` serve them all.
"""

__version__ = "0.1.0"
