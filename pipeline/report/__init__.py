"""Pictures for people: `scene` chooses what to show of a case, `layout` makes the page, `figures` draws it.

`figures` is the door of segmentation and also draws training curves; those of classification are
`discrimination`, `calibration` and `explanation`. `charts` is what all charts have in common, `panels` what
all pictures of slices have.

A page stands on the skeleton of `page` and its templates. That of a run is a `content.Report`, of which
`case_tables` and `class_tables` make parts; `report_page` writes it with what `cutouts` takes of cases. That
of a `comparison` has no scripts.
"""
