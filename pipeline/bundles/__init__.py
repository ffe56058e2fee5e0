"""MONAI bundles that others made: read as plain data, and put into the words of a segmentation job.

`opening` finds the files of a folder or zip, `plain` reads values without evaluating anything, `steps` lists
transforms; `preparing`, `deciding` and `defining` put them into our settings; `definition` has all of it.
"""
