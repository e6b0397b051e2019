"""How good a trained adapter is: beside its base, beside other models, beside other runs.

rows         held-out rows: what is asked, what is wanted, what the loss is of
contenders   the models that are compared, loaded one at a time
answers      their answers, in batches that an interrupted evaluation goes on from
loss         their losses, row by row
matching     when an answer is right
statistics   intervals and tests
result       scores, differences and rows
evaluation   all of that for one run
harness      tasks of the lm-eval package
task_results what they gave
kept         evaluations on disk, and which of them can be compared
"""
