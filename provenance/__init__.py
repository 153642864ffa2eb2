"""From a folder of photos to a verdict: what data_marking.py and eval.py share for one user and any model.

photos: reading and writing what people have | record: the private mark record and its commitment | suspect: what a
model under audit is | models: files that hold one | protocol: servers that answer for one | verdict: the exact
randomization test | evidence: stored answers, the bundle and its replay. Nothing here imports a script.
"""
