"""One run of train.py: flags -> setup -> training -> audit -> report, in one folder."""
