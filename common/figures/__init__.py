"""Figures: one look for all, and a module for each kind of experiment."""
