"""The page for people who never open a terminal: what app.py serves.

desk: folders, uploads and jobs of the page | jobs: work that outlives a browser tab | protect, check, audit: the three
tabs | panel: how a tab shows a job | power: measured figures out of results/ | look: words and colours | server: who
may come in. All work is done by the functions that data_marking.py, eval.py and privacy-audit.py call.
"""
