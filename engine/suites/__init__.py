"""The evaluations of a run: labelled data, features computed once, suites, tables."""
