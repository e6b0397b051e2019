"""Whether an artifact, or a server that has it, computes what the trainer's own model computes.

artifact   what a directory is: a merged model or an adapter, by the formats of export/
prompts    held-out prompts as training wrote them
prompting  the tokenizer and chat template beside an artifact
measure    what a model says to rows and prompts, kept on disk; how another differs
figures    the limits, and each figure beside its limit
against    an artifact against a run
unchanged  an artifact against its own proof
endpoint   the requests to a server of the OpenAI API
hearing    what a server says to prompts, in every way that it takes
served     a server against a run
"""
