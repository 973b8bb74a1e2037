"""The benchmarks by name: what each one measures, what it repeats, and where it is. Imports none of them."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.harness.result import Result

Say = Callable[[str], None]
"""Takes a line about what is going on."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark. Its module has `measure(n, quick, say)`, which answers a `Result` and leaves nothing running."""

    module: str
    caption: str
    unit: str
    default_n: int
    quick_n: int
    # Options of the command line that its `measure` takes by name: `answers`, `only`.
    options: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Name on the command line: the last part of the module's."""
        return self.module.rpartition(".")[2]

    def measure(self, n: int | None, quick: bool, say: Say, options: Mapping[str, str] | None = None) -> Result:
        """Run it. `options`: those of its own, by name. Raises `SteerwayError` if it could not be run."""
        module = importlib.import_module(f"benchmarks.{self.module}")
        count = n if n is not None else self.quick_n if quick else self.default_n
        result: Result = module.measure(count, quick, say, **(options or {}))
        return result


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "step_cost.boundary", "cost of the quiet boundary per step: none, blocking, prefetched", "rounds", 8, 2
        ),
        Benchmark(
            "step_cost.overhead", "how much longer a step takes with Steerway than without", "blocks an arm", 60, 5
        ),
        Benchmark(
            "step_cost.signs", "cost of health signs per step: off, every step's, layers, hooks", "rounds", 40, 4
        ),
        Benchmark(
            "step_cost.mixture_cost",
            "cost of automatic mixtures: losses of sources on the ranks, the agent's process and its fits",
            "rounds",
            60,
            4,
        ),
        Benchmark(
            "live.latency", "steps and milliseconds from the gateway's 202 to the live optimizer", "commands", 200, 20
        ),
        Benchmark(
            "checkpoints.checkpoint", "how long a step waits for a checkpoint, against stock DeepSpeed", "rounds", 3, 1
        ),
        Benchmark(
            "live.control_loss", "what training and commands notice when the control server is killed", "kills", 5, 1
        ),
        Benchmark(
            "recovery.recovery",
            "SIGKILL of a rank's node: seconds to the next step, beside stock",
            "kills an arm",
            5,
            1,
        ),
        Benchmark(
            "recovery.recovery_rank",
            "SIGKILL of one rank: seconds to the next step, beside stock",
            "kills an arm",
            5,
            1,
        ),
        Benchmark(
            "recovery.recovery_stop", "SIGSTOP of one rank: seconds to the next step, beside stock", "stops", 5, 1
        ),
        Benchmark(
            "failures.false_alarms",
            "losses of a run that nothing happens to, with evaluations and saves",
            "minutes",
            30,
            1,
        ),
        Benchmark(
            "failures.deaths", "SIGSTOP and SIGKILL of a rank: seconds until its peer has ended", "faults a kind", 20, 2
        ),
        Benchmark(
            "network.cut_link",
            "the cut link of a rank's node: seconds to the next step, beside ours without the cure",
            "cuts",
            10,
            1,
        ),
        Benchmark(
            "network.bad_links",
            "a run steered under delay, loss, flaps and a one-way cut: boundaries, failures, digests",
            "commands a fault",
            10,
            3,
        ),
        Benchmark(
            "network.node_deaths",
            "nodes that Ray falsely declares dead on a busy machine, with the variables of `steer up`",
            "minutes",
            30,
            1,
        ),
        Benchmark(
            "failures.busy",
            "ranks that are slow, busy or hold Python's lock, on a busy machine: false deaths",
            "minutes",
            20,
            2,
        ),
        Benchmark(
            "step_cost.scale", "what grows with the ranks: boundary, control server, real gloo", "boundaries", 40, 4
        ),
        Benchmark(
            "health.health",
            "health checks on planted faults and healthy runs: found in how many steps, false alerts",
            "runs a kind of fault",
            10,
            1,
            frozenset({"answers", "only"}),
        ),
        Benchmark(
            "studies.study_agent",
            "rules, chance and a model at the learning rate, from good and bad starts: rescued, regret",
            "paired seeds",
            8,
            2,
            frozenset({"answers"}),
        ),
        Benchmark(
            "studies.human.study_human",
            "recorded interventions at a fine-tuning's learning rate, beside static and tuned decay: losses, savings",
            "paired seeds",
            6,
            1,
            frozenset({"answers"}),
        ),
        Benchmark(
            "studies.data.study_data",
            "records of missing behaviours that come in while a model of a desktop trains: errors before and after",
            "seeds",
            3,
            1,
            frozenset({"answers"}),
        ),
        Benchmark(
            "studies.data.study_feedback",
            "what a person says of a policy's games, sent while it learns: what the person wants, with and without",
            "paired seeds",
            5,
            1,
            frozenset({"answers"}),
        ),
        Benchmark(
            "studies.data.study_mixture",
            "weights of a clean and a noisy text, set by four policies while a model trains: losses, shares",
            "paired seeds",
            5,
            1,
            frozenset({"answers"}),
        ),
        Benchmark(
            "storm.storm", "1,000 commands a second against a run: its speed, a good client's wait", "seconds", 30, 5
        ),
        Benchmark(
            "live.supervision", "SIGKILL of what `steer up` starts: seconds until it answers", "kills a part", 5, 1
        ),
        Benchmark("storm.storm_of_faults", "SIGKILL and SIGSTOP to every part while somebody steers", "storms", 3, 1),
        Benchmark(
            "live.rollback", "back to a checkpoint on a live run: seconds to the next step", "rollbacks a stage", 7, 2
        ),
        Benchmark(
            "live.ingest",
            "records that come in while a run trains: slow-down of its steps, lost or doubled",
            "periods",
            9,
            1,
        ),
        Benchmark(
            "step_cost.digest",
            "cost of digesting the live state every 1, 10, 100 steps, beside SHA-256",
            "rounds",
            4,
            1,
        ),
        Benchmark("kills.kills", "SIGKILL at every named failpoint of a control server, under load", "kills", 1000, 66),
        Benchmark(
            "checkpoints.torn_saves", "what a restart chooses after a death during a save", "saves a protocol", 12, 1
        ),
    )
}


def listing() -> str:
    """One line for each benchmark."""
    width = max(map(len, BENCHMARKS))
    return "\n".join(
        f"{name:<{width}}  {benchmark.caption} (n: {benchmark.unit}, {benchmark.default_n} unless given)"
        for name, benchmark in BENCHMARKS.items()
    )
