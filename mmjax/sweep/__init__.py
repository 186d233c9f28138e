"""Sweeps: axes over training configs, trained as few programs.

Choices are made on validation.

space       from a sweep's config to cells and trials
resources   datasets and stores, each opened once
ledger      finished work: one append-only file
leases      which process holds which task, across processes and hosts
search      the points of a cell: grid, random, TPE
batching    from trials to programs, as many trials at a time as memory holds
plan        the remaining trials, and the choice on validation
worker      the loop: train a pack, then look again
final_test  the test split, read once for the chosen points
estimate    time, memory and disk of a sweep, before it starts
precompile  all programs of a sweep, compiled before it starts
"""
