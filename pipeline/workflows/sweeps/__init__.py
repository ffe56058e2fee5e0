"""A sweep: its course, as its folder keeps it, and what is suggested next."""
