"""In which order processes of pytest-xdist take the files of tests. Its own is: files of many tests first.

Public: scheduler, rank.
"""

# Kept in one process: all use one page, one person's story and two models.
TOGETHER = ("tests/page/test_browser",)
# What takes a process more than a few seconds, the slowest first; all else follows in the order of its names.
SLOW = (
    *TOGETHER,
    "tests/launch/",
    "tests/test_scripts.py",
    "tests/page/",
    "tests/provenance/",
    "tests/privacy/",
    "tests/studies/",
    "tests/countermeasures/",
    "tests/kit/test_distributed.py",
    "tests/suspects/",
    "tests/experiment/",
    "tests/test_documents.py",
    "tests/baselines/",
    "tests/imagenet/",
    "tests/detection/",
)


def scheduler(config, log):
    """`--dist loadfile` in the order in which tests were collected, but for TOGETHER. Needs pytest-xdist."""
    from xdist.scheduler import LoadFileScheduling

    class InOrder(LoadFileScheduling):
        def _split_scope(self, nodeid):
            scope = super()._split_scope(nodeid)
            return next((shared for shared in TOGETHER if scope.startswith(shared)), scope)

    config.option.loadscopereorder = False
    return InOrder(config, log)


def rank(nodeid):
    """A test's place in SLOW."""
    return next((place for place, slow in enumerate(SLOW) if nodeid.startswith(slow)), len(SLOW))
