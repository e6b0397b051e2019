"""What is wrong with this machine, or with a run directory: tried, not assumed.

`machine` tries what is installed and whether it works together; `run` reads a run directory file by
file. Neither changes anything. The room's own modules import the standard library alone, so that
`python -m lorafit.doctor` can say what is missing where the command line cannot start; what loads
torch or may crash is in `probes/`, which another process runs.
"""
