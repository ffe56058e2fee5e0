"""Labelled studies that need no download: full-size heads for the demo, tiny phantoms for tests.

`studies` lays out folders and manifests; `heads` and `phantoms` draw one case; `warps` holds the smooth
random fields and the deformation that heads are made with.
"""

from pipeline.data.synthetic.studies import write_head_study, write_phantom_study

__all__ = ["write_head_study", "write_phantom_study"]
