"""Answer requests with a base, a tuned model or a checkpoint. Knows no store, no API and no training.

`backend` and `requests` are for the API process and load no torch; `engine`, `adapters`, `chat` and `server` are the child's.
"""
