"""Steps of the rehearsal, in order: what each does, checks and notes."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.rehearsal.machines import (
    HOME,
    RAY_TOKEN,
    WORKERS,
    Place,
    StepFailed,
    printed,
    send_code,
    wait_until,
)
from benchmarks.rehearsal.report import Report

CODE = Path(__file__).with_name("code")
FIRST_STEP_WITHIN_S = 300.0
BACK_WITHIN_S = 180.0
END_WITHIN_S = 600.0
ADVANCE = 3
"""Steps that a training must take to count as training."""

FETCH = (
    "import sys, urllib.request as u; answer = u.urlopen(sys.argv[1], timeout=20); "
    "print(answer.status, len(answer.read()))"
)


class Rehearsal:
    """State of a rehearsal between its steps."""

    def __init__(self, place: Place, report: Report) -> None:
        self.place, self.report = place, report
        self.run = ""

    # --- The road ---

    def build(self) -> None:
        """Make three machines and a laptop, and start Ray by hand on the three."""
        place = self.place
        with self.report.step("machines", "three machines share a folder; the laptop sees neither it, nor Ray") as seen:
            place.build()
            outside = place.laptop.run("python", "-c", "import ray", env={"PYTHONPATH": "/srv/home/without-ray"})
            demand(outside.returncode != 0, "the laptop can import Ray")
            demand(place.laptop.run("ls", "/srv/shared").returncode != 0, "the laptop sees the shared folder")
            seen.note("4 machines")
        with self.report.step("Ray by hand", "`ray start` with Ray's token on a head and two workers") as seen:
            place.start_ray()
            seen.note("head without CPUs, 2 CPUs on each worker")

    def deploy(self) -> None:
        """Deploy, twice."""
        place = self.place
        with self.report.step("deploy", "gateway, tokens and console on the hand-started cluster") as seen:
            outcome = place.deploy()
            failed = [f"{one['what']}: {one['why']}" for one in outcome["lacks"] if one["level"] == "failed"]
            demand(not failed, f"failed checks: {failed}")
            seen.note(f"gateway {outcome['gateway']}, {len(outcome['lacks'])} warnings")
        with self.report.step("deploy again", "the second call changes nothing"):
            demand(place.deploy()["changed"] is False, "the second deployment changed something")

    def connect(self) -> None:
        """Give the laptop a token, and a context."""
        place = self.place
        with self.report.step("context", "the laptop has a URL and a Steerway token, and no token of Ray"):
            token = place.on_cluster("token", "create", "laptop", "--role", "operator").strip().splitlines()[-1]
            self._add_context(token)
            demand(place.steer("runs") is not None, "no list of runs")
            held = place.laptop.run("grep", "-rl", RAY_TOKEN["RAY_AUTH_TOKEN"], "/srv/home").stdout
            demand(not held, f"the laptop has Ray's token in {held}")
        with self.report.step("doctor", "every node shares folder and key; nothing has failed") as seen:
            findings = json.loads(place.steer("doctor", "--json").splitlines()[-1])["findings"]
            levels = [finding["level"] for finding in findings]
            shared = [finding for finding in findings if finding["what"].endswith("shared folder and key")]
            demand(len(shared) == 1 + len(WORKERS), f"{len(shared)} nodes were asked for the shared folder")
            demand("failed" not in levels, str([finding for finding in findings if finding["level"] == "failed"]))
            seen.note(f"{levels.count('ok')} ok, {levels.count('warning')} warnings")

    def _add_context(self, token: str) -> None:
        place = self.place
        place.steer("context", "add", "cluster", "--url", place.url, "--insecure", text=token + "\n")

    def submit(self) -> None:
        """Submit a script with a module and a data file from the laptop."""
        place = self.place
        with self.report.step("submit", "a script with a local module and a data file, from the laptop") as seen:
            folder = send_code(place.laptop, CODE)
            answer = json.loads(place.steer("submit", "rehearsal.yaml", "--json", cwd=folder).splitlines()[-1])
            self.run = answer["run"]
            seen.note(self.run)
        with self.report.step("first step", "both ranks train") as seen:
            self._wait_for_step(ADVANCE, FIRST_STEP_WITHIN_S)
            seen.note(str(place.carriers()))

    def steer(self) -> None:
        """Set the learning rate, read a rank's log, open the console's page."""
        place = self.place
        with self.report.step("set", "a learning rate from the laptop is applied on both ranks") as seen:
            said = place.steer("set", self.run, "lr=0.004", "--reason", "rehearsal")
            demand("applied at step" in said and "2 of 2 ranks" in said, said)
            seen.note(said.strip().splitlines()[0][:80])
        with self.report.step("logs", "the log of rank 1, which is on another machine") as seen:
            lines = place.steer("logs", self.run, "-s", "rank-1").splitlines()
            demand(bool(lines), "the log of rank 1 is empty")
            seen.note(f"{len(lines)} lines")
        with self.report.step("console", "the console's login page and its assets come to the laptop") as seen:
            host = urlsplit(place.url).hostname
            page = printed(place.laptop, ("python", "-ISc", FETCH, f"http://{host}:8701/login"), {})
            status, size = page.split()
            demand(status == "200" and int(size) > 200, page)
            seen.note(f"{size} bytes")

    # --- The wire ---

    def cut(self) -> None:
        """Cut the link of a worker with a rank, and heal it."""
        place = self.place
        cut = self._carrier()
        with self.report.step("cut link", "the rest trains on; the cut node's ranks are replaced") as seen:
            before = self._generation()
            place.rig.machines[cut].link.cut()
            seen.note(f"training again after {self._seconds_back(before):.1f} s without {cut}")
        with self.report.step("heal", "the healed machine joins again") as seen:
            place.rig.machines[cut].link.heal()
            if self._joins_by_itself(cut):
                seen.note("its raylet was not declared dead")
            else:
                place.rig.machines[cut].kill()
                place.join(cut)
                seen.note("its raylet had ended; `ray start` joined it")
            wait_until("two workers", lambda: self._living_workers() == len(WORKERS), 60.0)

    def kill(self) -> None:
        """Kill the raylet of a node with ranks, and start it again."""
        place = self.place
        victim = self._carrier()
        with self.report.step("kill a raylet", "its ranks are replaced on the other machine") as seen:
            before = self._generation()
            demand(bool(place.rig.machines[victim].kill("raylet/raylet")), "there was no raylet to kill")
            seen.note(f"training again after {self._seconds_back(before):.1f} s without {victim}")
        with self.report.step("start it again", "`ray start` joins the machine"):
            place.rig.machines[victim].kill()
            place.join(victim)

    def lose_the_head(self) -> None:
        """Power the head off, make a new one, and resume the run."""
        place = self.place
        with self.report.step("lose the head", "the laptop is told; the workers' Ray ends") as seen:
            at = self._step()
            place.head.close()
            try:
                place.steer("runs")
            except StepFailed as error:
                seen.note(error.reason.rpartition("steer: ")[2].strip()[:90])
            else:
                raise StepFailed("the gateway still answers without its machine")
        with self.report.step("new head", "another machine, the same folder; deploy") as seen:
            place.head = place.rig.machine("head")
            for name in WORKERS:
                place.rig.machines[name].kill()
            place.start_ray()
            outcome = place.deploy()
            place.steer("context", "remove", "cluster")
            token = place.on_cluster("token", "create", "laptop-2", "--role", "operator").strip().splitlines()[-1]
            self._add_context(token)
            seen.note(f"gateway {outcome['gateway']}")
        with self.report.step("resume", "`steer resume` continues from a checkpoint") as seen:
            place.steer("resume", self.run)
            snapshot = self._wait_for_step(at + ADVANCE, FIRST_STEP_WITHIN_S)
            seen.note(f"step {at} when the head was lost, step {snapshot['step']} now")

    def finish(self) -> None:
        """Wait for the end, replay the run without faults, and compare digests."""
        place = self.place
        with self.report.step("finish", "the run ends") as seen:
            snapshot = wait_until("the end of the run", lambda: self._closed(self.run), END_WITHIN_S)
            demand(snapshot["status"] == "finished", f"{snapshot['status']}: {snapshot.get('reason')}")
            seen.note(f"step {snapshot['step']}, generation {snapshot.get('generation')}")
        with self.report.step("exact", "the same run without a fault has the same digests on every rank") as seen:
            replay = json.loads(place.steer("replay", self.run, "--detach", "--json").splitlines()[-1])["replay"]
            wait_until("the end of the replay", lambda: self._closed(replay), END_WITHIN_S)
            disturbed, quiet = self._digests(self.run), self._digests(replay)
            common = sorted(set(disturbed) & set(quiet))
            differing = [step for step in common if disturbed[step] != quiet[step]]
            demand(len(common) >= 10, f"only {len(common)} steps have digests in both runs")
            demand(not differing, f"digests differ at the steps {differing}")
            verdict = json.loads(place.steer("replay", self.run, "--against", replay, "--json").splitlines()[-1])
            demand(verdict["verdict"] == "identical", str(verdict)[:600])
            seen.note(f"{len(common)} of {len(common)} digests equal, the last at step {common[-1]}")

    # --- Looking ---

    def _step(self) -> int:
        return int(self.place.status(self.run)["step"])

    def _generation(self) -> int:
        return int(self.place.status(self.run).get("generation") or 0)

    def _closed(self, run: str) -> dict[str, Any] | None:
        snapshot = self.place.status(run)
        return snapshot if snapshot["status"] in ("finished", "failed", "stopped") else None

    def _wait_for_step(self, step: int, within_s: float) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            snapshot = self.place.status(self.run)
            if snapshot["status"] in ("failed", "stopped"):
                raise SystemExit(f"run {self.run} has {snapshot['status']}: {snapshot.get('reason')}")
            return snapshot if snapshot["step"] >= step else None

        found: dict[str, Any] = wait_until(f"step {step} of {self.run}", there, within_s)
        return found

    def _seconds_back(self, before: int) -> float:
        """Wait until a later generation has taken steps; return the seconds since this call."""
        began_s = time.monotonic()

        def training() -> bool:
            return self._generation() > before

        wait_until("a new generation", training, BACK_WITHIN_S)
        step = self._step()
        wait_until("new steps", lambda: self._step() >= step + 1, BACK_WITHIN_S)
        return time.monotonic() - began_s

    def _carrier(self) -> str:
        carriers = self.place.carriers()
        demand(bool(carriers), "no machine carries a rank")
        return sorted(carriers)[-1]

    def _living_workers(self) -> int:
        nodes = json.loads(self.place.steer("nodes", "--json").splitlines()[-1])["nodes"]
        return sum(node["state"] == "ALIVE" and not node["is_head"] for node in nodes)

    def _joins_by_itself(self, name: str) -> bool:
        try:
            wait_until("its return", lambda: self._living_workers() == len(WORKERS), 8.0)
        except StepFailed:
            return False
        return bool(self.place.rig.machines[name].processes("raylet/raylet"))

    def _digests(self, run: str) -> dict[int, Any]:
        """Return the last digests of each step, by rank, from the run's journal."""
        found: dict[int, Any] = {}
        for line in self.place.steer("journal", run, "--json").splitlines():
            entry = json.loads(line)
            if entry["type"] == "StateDigested":
                # A step that was taken again, after a failure, counts as it was taken last.
                found[int(entry["body"]["step"])] = entry["body"]["ranks"]
        return found

    def print_logs(self) -> None:
        """Print the ends of the logs in the shared home."""
        home = self.place.rig.shared / Path(HOME).name
        for log in sorted([*home.glob("logs/*.log"), *home.glob("runs/*/logs/*.log")]):
            print(f"--- {log.relative_to(home)}\n{log.read_text(errors='replace')[-1500:]}", flush=True)


def demand(holds: bool, reason: str) -> None:
    """Raise `StepFailed` with the reason unless it holds."""
    if not holds:
        raise StepFailed(reason)


STEPS: tuple[tuple[str, Callable[[Rehearsal], None]], ...] = (
    ("machines", Rehearsal.build),
    ("deploy", Rehearsal.deploy),
    ("context", Rehearsal.connect),
    ("submit", Rehearsal.submit),
    ("steer", Rehearsal.steer),
    ("cut", Rehearsal.cut),
    ("kill", Rehearsal.kill),
    ("head", Rehearsal.lose_the_head),
    ("exact", Rehearsal.finish),
)
