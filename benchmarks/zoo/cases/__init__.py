"""The families, one file per kind of fault. Files are found by themselves."""
