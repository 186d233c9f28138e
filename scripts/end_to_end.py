"""Point to this command's new location."""

raise SystemExit("error: this is now python scripts/experiments/end_to_end.py, with the same flags")
