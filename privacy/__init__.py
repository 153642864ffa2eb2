"""privacy-audit.py's stages: how much a training pipeline gives away about the records that it trains on.

config    the YAML file: four sections, unknown keys are refused
data      records and labels by name
models    networks by name, trained models from files
training  who trains on what; one file for each model
signals   what every model says about every record, stored model by model
audit     the attacks of `attacks/`, every model as target in turn
report    tables, curves and the page
"""
