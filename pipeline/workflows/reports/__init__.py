"""What the page of a run, of a folder or of a sweep shows: a file for each, and what they share."""
