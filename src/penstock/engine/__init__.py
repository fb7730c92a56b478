"""One instance: the scheduler, the loop around an executor, and what a front end talks to. Imports no torch."""
