"""Answer requests with a base, a tuned model or a checkpoint. Knows no store, no API and no training.

`backend` and `requests` are for the API process and load no torch. The rest is the model process: `server` speaks HTTP, `chat`
turns messages into tokens, `engine` computes with `adapters`, `text` and `wire` turn tokens into words and OpenAI's objects.
"""
