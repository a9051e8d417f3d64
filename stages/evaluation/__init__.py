"""What `evaluate` measures, one module per task, and of what: a trained network or a teacher's features."""
