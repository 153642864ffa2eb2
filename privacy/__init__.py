"""privacy-audit.py's stages: how much a training pipeline gives away about the records that it trains on.

config    the YAML file: four sections, unknown keys are refused; translation: Privacy Meter's words for them
data      records and labels by name
models    networks by name, trained models from files
training  who trains on what; one file for each model
language  GPT-2 and its signals
ranges    copies of a record that somebody holds in its place
signals   what every model says about every record, stored model by model
folds     one target with its references
attack    the attacks of `attacks/`, every model as target in turn
risk      beyond single records: groups, users, ranges, shares, epsilon
report    tables and curves; html: the page
pipeline  the stages, joined by their files
Public: STAGES (what --stop_after may name).
"""

STAGES = ("data", "models", "signals", "audit", "report")
