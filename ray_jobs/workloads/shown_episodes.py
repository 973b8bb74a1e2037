"""Episodes that are written out, so that people can look at them and say what they think.

    RUN/work/episodes/00000250.jsonl      games of step 250, one a line: episode, path, features

A line with a `score` is a record of a source of scores. An episode is called RUN/STEP/INDEX; the index counts the games
of rank 0, which writes them. The folder is bounded: it holds the newest steps of the branch that is being trained.
"""

import json
import logging
from pathlib import Path

from ray_jobs.workloads.grid import SIDE, Played

KEPT_STEPS = 100
"""Steps whose episodes are kept: with 32 games of 300 bytes each, a megabyte."""

log = logging.getLogger(__name__)


class ShownEpisodes:
    """Folder of the episodes of a run. `shown`: how many of a step; 0: none."""

    def __init__(self, folder: Path, run: str, shown: int) -> None:
        self._folder, self._run, self._shown, self._has_failed = folder, run, shown, False

    def write(self, step: int, played: Played) -> None:
        """Write the first games of a step. An error is logged once: the training goes on without."""
        if not self._shown:
            return
        lines = "".join(json.dumps(each) + "\n" for each in described(played, self._run, step)[: self._shown])
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = self._folder / ".draft"
            draft.write_text(lines)
            draft.replace(self._folder / f"{step:08d}.jsonl")
            steps = {int(path.stem): path for path in self._folder.glob("*.jsonl")}
            # Later ones are of a branch that was left, or of before a failure: they will be written again.
            old = [each for each in steps if each > step] + sorted(each for each in steps if each <= step)[:-KEPT_STEPS]
            for each in old:
                steps[each].unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            if not self._has_failed:
                log.warning("the episodes of step %d could not be written to %s: %s", step, self._folder, error)
            self._has_failed = True


def described(played: Played, run: str, step: int) -> list[dict[str, object]]:
    """Return what is written of each game: its name, its path as `row,column` of each field, and its features."""
    features, goes_on = played.features().tolist(), (played.alive > 0).tolist()
    starts, fields = played.starts.tolist(), played.fields.tolist()
    described = []
    for game, start in enumerate(starts):
        entered = [fields[move][game] for move in range(len(fields)) if goes_on[move][game]]
        path = " > ".join(f"{field // SIDE},{field % SIDE}" for field in (start, *entered))
        described.append({"episode": f"{run}/{step}/{game}", "path": path, "features": features[game]})
    return described
