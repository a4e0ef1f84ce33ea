"""Rows of training tokens made by worker processes while the model trains."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.queues import Queue

from tiny.mixture import RowMaker, Rows


def work(maker: RowMaker, queue: Queue[Rows], first_seed: int, stride: int, rows: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    seed = first_seed
    while True:
        queue.put(maker.rows(seed, rows))
        seed += stride


class Feed:
    """Batches in an order that depends on the seed and the number of workers alone.

    Start it before the first use of the GPU: workers are forked.
    """

    def __init__(self, maker: RowMaker, rows: int, workers: int, seed: int) -> None:
        context = multiprocessing.get_context("fork")
        self.queues = [context.Queue(maxsize=4) for _ in range(workers)]
        self.workers = [
            context.Process(target=work, args=(maker, q, seed * 1_000_000 + i, workers, rows), daemon=True)
            for i, q in enumerate(self.queues)]
        for worker in self.workers:
            worker.start()
        self.count = 0

    def next(self) -> Rows:
        batch = self.queues[self.count % len(self.queues)].get(timeout=300)
        self.count += 1
        return batch

    def stop(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.join()
