"""Answer requests with a base, a tuned model or a checkpoint. Knows no store, no API and no training.

`backend` and `requests` are for the API process and load no torch. The rest is the model process: `server` speaks HTTP, `chat`
turns messages into tokens, `text` and `wire` turn tokens into words and OpenAI's objects. `engine` decides what is computed in each
step, `sampling` draws from it. `packed` computes many sequences in one row, with `attention`, `cache`, `adapters` and `weights`;
`single` one after the other, for models of which `selfcheck` finds that they need it.
"""
