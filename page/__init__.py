"""The page for people who never open a terminal: what app.py serves.

desk: folders, uploads and jobs of the page | jobs: work that outlives a browser tab | tabs/: protect, check and audit,
power with measured figures out of results/ | panel: how a tab shows a job | look: colours, boxes, pictures | words: the
command line's messages | server: who may come in. All work is done by the functions that data_marking.py, eval.py and
privacy-audit.py call.
"""
