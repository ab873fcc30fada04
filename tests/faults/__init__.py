"""Attacks on the pipeline: with any input and after any interruption, it gives the same bytes or a clear error.

Each test is a row of SECURITY.md's table: the fixture `attack` counts its cases and those that ended as expected.
FAULTS is how many percent of the cases are run, 10 unless it is set; `make faults` runs all of them. Which ones are run
and what they hold follows from FAULTS_SEED, 0 unless it is set.
"""
