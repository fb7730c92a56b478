"""The records that everything else speaks: requests, sequences, plans, the executor protocol, time, errors.

Imports nothing of ours, no torch, and reads no clock of the machine except in `clock.py`.
"""
