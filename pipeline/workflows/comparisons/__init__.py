"""The tables behind `clinseg compare`: which runs may be compared, and a file per task."""
