"""One run of train.py: flags -> setup -> training -> audit -> report, in one folder.

flags: the command line and the settings | setup: who is who, what they publish | training: train, or open a checkpoint
audit: ask the model about everybody, and conclude | report: table and plots
calibrate: the audit beside a model that has seen nobody | folder: the names of a run's files
"""
