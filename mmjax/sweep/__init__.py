"""Ablations: axes over training configs, trained as few programs, chosen on validation.

space      a sweep's config to cells and trials
ledger     what has been done: one append-only file
leases     who is doing what, among processes and hosts
search     which points a cell tries: grid, random, TPE
packing    trials to programs, as many at a time as memory holds
survey     what is left, and the choice on validation
running    the loop: train a pack, then look again
testing    the test split, read once for what was chosen
resources      datasets and stores, opened once
"""
