"""Speed, beside plain PyTorch in the same call; see `__main__`."""
