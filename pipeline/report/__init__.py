"""Pictures for people: `scene` chooses what to show of a case, `layout` makes the page, `figures` draws it.

`figures` is the door; it also draws training curves.
"""
