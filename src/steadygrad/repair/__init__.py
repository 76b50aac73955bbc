"""Repair: remedies, how they are put in force on an untouched run, and the search for the one that cures it."""
