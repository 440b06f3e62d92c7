"""The only SQL and blob storage: jobs, events, metrics, checkpoints, files, models, the queue. Knows no HTTP and no torch."""
