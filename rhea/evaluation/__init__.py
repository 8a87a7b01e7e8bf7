"""Evaluation: what a checkpoint can do, measured on fresh samples with exact graders."""
