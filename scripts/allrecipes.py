"""Point to this command's new location."""

raise SystemExit("error: this is now python scripts/experiments/allrecipes.py, with the same flags")
