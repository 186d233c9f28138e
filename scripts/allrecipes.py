"""Say where this command went."""

raise SystemExit("error: this is now python scripts/experiments/allrecipes.py, with the same flags")
