"""Evaluation under missing modalities: metrics, one checkpoint over a grid of tables, and its reports."""
