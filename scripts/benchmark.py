"""Point to this command's new location."""

raise SystemExit("error: this is now python scripts/benchmark KIND, with the same flags")
