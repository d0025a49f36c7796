"""Metrics, and the naive baselines that stand beside them: a module for each kind of experiment."""
