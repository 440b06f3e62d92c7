"""What the project talks about: jobs, specs, runs, datasets, model names. Standard library only, no I/O."""
