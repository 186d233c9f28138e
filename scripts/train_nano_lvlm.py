"""Point to this command's new location."""

raise SystemExit(
    "error: this is now python scripts/experiments/train_nano_lvlm.py, with the same flags"
)
