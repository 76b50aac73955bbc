"""Small trainings with one known producer of the first non-finite value each."""
