"""Several calls under way at once, in threads, with results as they come.

Public: in_flight.
"""

import queue
import threading


def in_flight(work, items, limit):
    """Yield (item, work(item)) as the calls end, at most `limit` of them under way at once.

    Items are taken one at a time, here, as soon as there is room. When a call fails no further one begins; those under
    way are waited for and yielded, and then the first failure is raised. Whoever stops earlier leaves them to end by
    themselves. With a limit of 1 everything happens in this thread.
    """
    if limit == 1:
        for item in items:
            yield item, work(item)
        return
    ended, items, under_way, failure = queue.SimpleQueue(), iter(items), 0, None

    def call(item):
        try:
            ended.put((item, work(item), None))
        except BaseException as error:
            ended.put((item, None, error))

    more = True
    while more or under_way:
        while more and under_way < limit and ended.empty():
            try:
                item = next(items)
            except StopIteration:
                more = False
                break
            threading.Thread(target=call, args=(item,), daemon=True).start()
            under_way += 1
        if not under_way:
            break
        item, result, error = ended.get()
        under_way -= 1
        if error is None:
            yield item, result
            continue
        failure, more = failure or error, False
    if failure:
        raise failure
