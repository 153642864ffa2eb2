"""What the tests of the exact test and of its evidence share."""

import hashlib

from marking_parts import SETTINGS

from provenance import record as records


def make_record(*batches, seed=1):
    """A finished record of batches (photos, hold-out), without any photo on disk."""
    record = records.new_record(SETTINGS, seed)
    for count, holdout in batches:
        first = len(record.photos)
        photos = [
            {
                "original": f"{first + n}.png",
                "height": 8,
                "width": 8,
                "original_sha256": hashlib.sha256(b"%d" % (first + n)).hexdigest(),
            }
            for n in range(count)
        ]
        record = records.add_batch(record, photos, holdout, "in", "out", [photo["original"] for photo in photos])
        record = records.finish_batch(record, {p.number: "0" * 64 for p in record.photos if p.published})
    return record
