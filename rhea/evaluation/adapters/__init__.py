"""Rhea as a model of other people's evaluation suites; their packages are imported by the modules named after them."""
