"""Studies: many small trainings that answer one question."""
