"""Benchmark of speed beside plain PyTorch, in the same call.

See `__main__`.
"""
