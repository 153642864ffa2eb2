"""Anything that can be asked about a picture: files of models, servers."""
