"""Say where this command went."""

raise SystemExit("error: this is now python scripts/benchmark KIND, with the same flags")
