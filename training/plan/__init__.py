"""What a run will need before it is run: memory by part, time, storage and bandwidth, all counted.

`report(plan(workload, engine, cluster))` is what `python -m training plan` prints; README.md explains it.
"""

from .hardware import GPUS, Cluster
from .planning import Plan, plan
from .report import report
from .workload import Workload

__all__ = ["GPUS", "Cluster", "Plan", "Workload", "plan", "report"]
