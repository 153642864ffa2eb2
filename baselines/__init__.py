"""The methods that the paper compares with, one file each; `python -m baselines.NAME` runs one."""
