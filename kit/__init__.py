"""What any Python program has, be it about audits or not.

errors: how a script fails | cli: flags and the table at the end | files: JSON, arrays, weights, digests, locks
progress: bars that can be watched and cancelled | environment: hardware and versions | tables: Markdown and plain text
plots: figures as PNG | markup: HTML | noise: Perlin's and Gabor's | distributed: one training on several devices
"""
