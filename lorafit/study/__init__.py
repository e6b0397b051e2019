"""Many runs for one answer: sweeps over a recipe's keys, and what LoRA loses against full training.

    recipe ─► trials (a name and a recipe each) ─► runs: `lorafit train` in processes ─► outcomes
           ─► sweep: a table and a winner / regret: arms, further trials, a sentence

Runs are started as anybody would start them and read from their run directories.
"""
