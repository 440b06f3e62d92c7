"""What happened in a run, why, and what to do next: series in, a verdict out. Pure numpy; knows no store, no torch and no file."""
