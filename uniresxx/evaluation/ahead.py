"""Work done ahead in threads, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
THREADS = min(4, os.cpu_count() or 1)  # Pillow and zlib decode without Python's lock


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], waiting: int
) -> Generator[Result, None, None]:
    """`work(item)` of all items, in their order, begun before it is asked for.

    An error of `work` is raised where its result would have come, and ends the iteration. Closing the iterator, or an
    exception such as Ctrl-C in its user, drops what has not begun.

    Args:
        work: called in a thread; it must not depend on the order of calls.
        items: taken one by one.
        waiting: the most results that are begun and not yet asked for; it bounds the memory.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ahead")
    source = iter(items)
    begun: deque[Future[Result]] = deque(pool.submit(work, item) for item in islice(source, waiting))
    try:
        while begun:
            found = begun.popleft().result()
            begun.extend(pool.submit(work, item) for item in islice(source, 1))
            yield found
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
