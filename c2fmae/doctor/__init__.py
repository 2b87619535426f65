"""Diagnosis of an installation, of a run, and of the differences between two runs."""
