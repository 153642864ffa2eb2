"""From a folder of photos to a verdict: what data_marking.py and eval.py share for one user and any model.

photos, folder: reading and writing what people have | commit, beacon, timestamp, draw: from a commitment to a draw
record: the private mark record | protect: marking | plan, judgements: what is fixed before the first query
case, grid: asking a suspect, and judging | evidence, disclosed, witness: the bundle | replay: checking somebody else's
attacks/exact.py has the test itself, suspects/ the models. Nothing here imports a script.
"""
