"""Which job goes next to which GPU, one at a time on each; knows nothing of what they do."""

import os
from typing import NamedTuple

from bench.io import clock
from bench.runs import process

VISIBLE = "CUDA_VISIBLE_DEVICES"


class Item(NamedTuple):
    """A job and what it waits for."""

    job: object
    key: str
    """What the job is known by."""
    after: str | None = None
    """The key of a job that has to end first, where that is among them."""
    makes: str | None = None
    """What the first job that asks for it makes and the others find: until one of them has ended
    well, they run one at a time."""


class Queue:
    """Items in their order, each handed out when it has nothing to wait for."""

    def __init__(self, items):
        self._waiting, self._running, self._made = list(items), [], set()

    def take(self):
        """The first item that can begin now, or None."""
        item = next(filter(self._ready, self._waiting), None)
        if item:
            self._waiting.remove(item)
            self._running.append(item)
        return item

    def ended(self, item, well):
        """An item has ended, and did what it should or did not."""
        self._running.remove(item)
        if well:
            self._made.add(item.makes)

    def _ready(self, item):
        open_ones = {other.key for other in (*self._waiting, *self._running)}
        making = {other.makes for other in self._running} - {None, *self._made}
        return item.after not in open_ones and item.makes not in making


def spread(items, devices, work, begun, ended):
    """`work(job)` for each item in a process of its own that sees one of the devices, and no more
    than one at a time on each.

    `begun(job, device)` is called before, `ended(job, device, seconds, task)` after it; that says
    whether it went well. A signal stops all of them, and `Interrupted` is raised.
    """
    queue, free, taken = Queue(items), list(devices), {}
    with process.together() as tasks:
        while True:
            while free and (item := queue.take()):
                device = free.pop(0)
                begun(item.job, device)
                task = tasks.start(_on, device, work, item.job)
                taken[task] = item, device, clock.read()
            if not taken:
                return
            task = tasks.first()
            item, device, started = taken.pop(task)
            free.append(device)
            seconds = clock.read().since(started).seconds
            queue.ended(item, ended(item.job, device, seconds, task))


def _on(device, work, job):
    """What the process of an item does: nothing there has started CUDA yet."""
    os.environ[VISIBLE] = device
    return work(job)


def visible(count):
    """The GPUs that may be used, as `CUDA_VISIBLE_DEVICES` names them.

    Where that is not set they are `count()` in number.
    """
    given = os.environ.get(VISIBLE)
    if given is None:
        return [str(number) for number in range(count())]
    names = [name.strip() for name in given.split(",")]
    wrong = [number for number, name in enumerate(names) if name in ("", "-1")]
    return names[: wrong[0]] if wrong else names  # as CUDA reads it
