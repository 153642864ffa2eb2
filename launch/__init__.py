"""Many runs: one after the other, several at once on this machine, or as tasks of a Ray cluster.

guard: a small process beside each run | local, on_ray: where runs are started | pool: the commands of a sweep and what
is said of them | sweep.sh: what the sweep scripts share. `python -m launch` is the command.
"""
