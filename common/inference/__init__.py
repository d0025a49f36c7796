"""What trained weights are used for."""
