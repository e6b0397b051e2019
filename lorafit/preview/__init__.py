"""What a model will really see of the data: rows, lengths, batching and what is wrong with them.

`reading` reads the data as training would, but goes on where training would stop; `facts` gathers
what there is to show; `terminal` and `page` show it. No weights are loaded.
"""
