"""The ImageNet experiment (section 6): plan -> tree -> audit.

plan: who is who in an ImageFolder | tree: marks and links to train on | prepare: both for imagenet-prepare.py
users: whose images are whose in a folder | audit: ask a trained model and judge (imagenet-audit.py)
"""
