"""`python -m pipeline` is `clinseg`."""

from pipeline.cli import main

main()
