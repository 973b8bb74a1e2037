"""Functions and examples of a generator, by a process of the training side: code of the run never runs here.

The process submits a task to the run's cluster, with the environment of the run's ranks (`ray_jobs.service.generate`).
Neither the gateway's token nor the model's key is in its environment.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from control_plane.agent.generating.asking import Asked, Record
from control_plane.core.model.errors import Refused, SteerwayError, Unavailable
from control_plane.programs import program

LIMIT_S = 600.0
"""Time that a function has for a batch, on the cluster."""

MAX_WAIT_S = LIMIT_S + 60
EXAMPLES = 8
WITHOUT = ("STEERWAY_TOKEN", "OPENAI_API_KEY", "STEERWAY_GENERATOR")
MAX_REASON_CHARS = 300


class OnCluster:
    """Writer that calls the generator's function. `call`: path of its file and its name; None: examples only."""

    def __init__(self, environ: Mapping[str, str], call: tuple[str, str] | None) -> None:
        self._environ = {name: value for name, value in environ.items() if name not in WITHOUT}
        self._call = call

    def write(self, asked: Asked) -> list[Record]:
        """See `Writer.write`."""
        records = self._ask(asked).get("records")
        if not isinstance(records, list):
            raise Unavailable("the function's process gave no answer")
        return [record for record in records if isinstance(record, dict)][: asked.count]

    def examples(self, asked: Asked) -> list[Record]:
        """Return some records of the weak spot that are not held out, or none. Raises `Unavailable`."""
        found = self._ask(asked).get("examples")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def _ask(self, asked: Asked) -> dict[str, Any]:
        spot = asked.spot
        request = {
            "run": asked.run,
            "call": self._call,
            "limit_s": LIMIT_S,
            "examples": EXAMPLES,
            "sources": {name: source.model_dump(mode="json") for name, source in asked.sources.items()},
            "asked": {
                "generator": asked.generator,
                "source": spot.source,
                "slice": spot.slice,
                "loss": spot.loss,
                "step": spot.step,
                "records": asked.count,
                "seed": asked.seed,
            },
        }
        try:
            done = subprocess.run(
                program("ray_jobs.service.generate"),
                input=json.dumps(request).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environ | {"PATH": self._environ.get("PATH", os.defpath)},
                timeout=MAX_WAIT_S,
                check=False,
            )
            answer = json.loads(done.stdout.strip().rpartition(b"\n")[2])
        except subprocess.TimeoutExpired:
            raise Unavailable(f"the function did not answer within {MAX_WAIT_S:g} s") from None
        except (OSError, ValueError):
            raise Unavailable("the function's process ended without an answer") from None
        except SteerwayError as error:
            raise Refused(error.reason) from None
        if not isinstance(answer, dict) or "error" in answer:
            reason = str(answer.get("error") if isinstance(answer, dict) else "")[:MAX_REASON_CHARS]
            raise Unavailable(f"the function failed: {reason or 'no reason was given'}")
        return answer
