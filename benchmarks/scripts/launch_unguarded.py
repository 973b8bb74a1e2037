"""Driver of a run that starts its ranks whatever the nodes say: the other arm of the benchmark `cut_link`."""

import sys
from pathlib import Path
from typing import Any

from ray_jobs import launch
from ray_jobs.driver.silent_nodes import NodeRoom, SilentNodes


class Unguarded(SilentNodes):
    """`SilentNodes` that asks no node."""

    def __init__(self, *_: Any) -> None:
        super().__init__(elastic=False, look=list[NodeRoom])


if __name__ == "__main__":
    launch.SilentNodes = Unguarded  # type: ignore[assignment, misc]
    sys.exit(launch.main(Path(sys.argv[1])))
