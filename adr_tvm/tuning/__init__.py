"""Tuning: the schedule of each kernel of a network is searched for on this machine, and kept in a database.

``tune_network`` goes through the kernels that a network needs. A kernel is a ``task``: its space of schedules, a cost
model that says which to try first, and what it takes to build and run one. Nothing here changes a result.
"""
