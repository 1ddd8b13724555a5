"""The same jobs on a Ray cluster."""

from __future__ import annotations

from converters.jobs import ray_jobs
from converters.jobs.ray_jobs import packed, unpack
from partition.making.jobs import KIT, Folders

__all__ = ["RayRunner", "packed", "unpack"]


class RayRunner(ray_jobs.RayRunner):
    """Jobs on the cluster at `address` (HOST:PORT, ray://HOST:PORT, auto), or a Ray started here.

    Each job takes `threads` CPUs. Raises PartitionError where Ray cannot be reached.
    """

    def __init__(self, folders: Folders, address: str, threads: int) -> None:
        super().__init__(folders, address, threads, KIT)
