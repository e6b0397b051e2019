"""A small server on transformers and peft, for trying adapters, not for production.

`sampling` chooses a token, `text` makes words of tokens, `worker` answers waiting requests batch by
batch, `requests` reads OpenAI's forms, `replies` writes them, `server` speaks HTTP.
"""
