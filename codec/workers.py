"""Loading processes that outlive the signals which stop a training, and no longer than the program."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

STOPPING = signal.SIGINT, signal.SIGTERM


class WorkerLoader(DataLoader):
    """A `DataLoader` whose workers leave it to the main process to answer SIGINT and SIGTERM.

    Both reach all processes of a job; a worker that dies of them takes the training along.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        ending = multiprocessing.RawValue("b", 0)
        atexit.register(setattr, ending, "value", 1)
        super().__init__(*arguments, worker_init_fn=partial(prepare_worker, ending), **options)

    def __iter__(self) -> Any:
        """Start the workers, or ask those that run for the next batches."""
        with held_signals():
            return super().__iter__()


@contextmanager
def held_signals() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM from this thread and from the processes that it starts meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where a job has no signals to send
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_worker(ending: Any, worker: int) -> None:
    """Set up a loading process: one thread; no Ctrl-C or SIGTERM ends it before the program is `ending`."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if ending.value else None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
