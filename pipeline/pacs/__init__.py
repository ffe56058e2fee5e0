"""Talking with a PACS: DICOM's own network protocol (DIMSE) and DICOMweb, behind one door.

address (where it is) → connecting (which client) → dimse, dicomweb (find, fetch, send) · receiving (what is
sent to us) · instances (what arrives, on disk) · queue, entries (what was received, predicted and sent, also
after a kill) · desk (where it arrives) · sending (answers, again and again).

Nothing here looks at pixels or at a patient's tags: objects are known by their UIDs, and lie under hashes
of these.
"""
