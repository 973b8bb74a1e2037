"""Catalogue of signs: name, unit, group and meaning of every measurement, and the advice that goes with it.

A sign is one float64 of one step. NaN (or an infinity) means that something not finite was measured; a missing key
means that nothing was measured. A frozen group of layers, for example, has no key.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

SignGroup = Literal[
    "loss",
    "gradients",
    "precision",
    "schedule",
    "time",
    "memory",
    "checkpoints",
    "heldout",
    "layers",
    "hooks",
    "dynamics",
]
"""Groups of signs that the config switches on and off, in `health.signs`."""

Cadence = Literal["step", "gather", "hooks", "evaluation", "derived"]
"""Moment of a measurement: every step; every log interval, over all ranks; every `health.hook_steps`; when an
evaluation has ended; computed from the other signs by the health monitor."""

PHASES = ("step", "data", "evaluation", "checkpoint", "command", "pause")
"""Phases between two boundaries; the sign `phase` is an index into this."""


@dataclass(frozen=True, slots=True)
class Sign:
    """One sign, or all signs of a pattern: `<...>` stands for a name of the run's own.

    `is_timing`: measured with a clock, so that a repeated step has another value.
    """

    pattern: str
    unit: str
    group: SignGroup
    cadence: Cadence
    meaning: str
    advice: str
    is_timing: bool = False

    @property
    def prefix(self) -> str:
        """Part of the name before the run's own name; empty for a sign that is no pattern."""
        return self.pattern.partition("<")[0] if "<" in self.pattern else ""

    @property
    def suffix(self) -> str:
        """Part of the name after the run's own name."""
        return self.pattern.partition(">")[2]

    def matches(self, name: str) -> bool:
        """Return whether this is the name of the sign, or one of its pattern."""
        if not self.prefix:
            return name == self.pattern
        own = name.removeprefix(self.prefix).removesuffix(self.suffix)
        return bool(own) and name == self.prefix + own + self.suffix


SIGNS: tuple[Sign, ...] = (
    Sign(
        "loss",
        "as the training defines it",
        "loss",
        "gather",
        "Mean over all ranks of the training loss of a step; with one rank, the loss of that rank at every step.",
        "Compare it with its own recent past, not with another run's: noise depends on the batch, level on the data.",
    ),
    Sign(
        "loss_local",
        "as the training defines it",
        "loss",
        "step",
        "Training loss of rank 0's own samples, at every step. Noisier than `loss`, but never late.",
        "A jump here without one in `loss` is one rank's batch: look at the data of rank 0.",
    ),
    Sign(
        "grad_norm",
        "L2 norm",
        "gradients",
        "step",
        "Norm of the gradient over all parameters and ranks, before clipping.",
        "A slow rise over thousands of steps often comes before a divergence: lower the learning rate, or clip lower.",
    ),
    Sign(
        "lr",
        "1",
        "schedule",
        "step",
        "Learning rate of the first parameter group, as the optimizer holds it.",
        "If it is not what the schedule says, a command holds it: `steer knobs` tells.",
    ),
    Sign(
        "max_grad_norm",
        "L2 norm",
        "schedule",
        "step",
        "Norm that gradients are clipped to (the knob `gradient_clipping`); 0 or missing: none.",
        "About the usual gradient norm of the run: far above it never acts, far below it is a smaller learning rate.",
    ),
    Sign(
        "skipped_steps",
        "steps",
        "precision",
        "step",
        "Running count of steps that the optimizer did not take, since gradients were not finite.",
        "One now and then is how dynamic loss scaling works. Many in a row: see `loss_scale_exhausted`.",
    ),
    Sign(
        "loss_scale",
        "1",
        "precision",
        "step",
        "Factor that an fp16 training multiplies its loss by, so that small gradients do not vanish.",
        "It doubles after a quiet while and halves at each overflow. A steady fall means growing gradients.",
    ),
    Sign(
        "loss_scale_min",
        "1",
        "precision",
        "step",
        "Smallest loss scale that the training allows.",
        "An overflow at this scale cannot be repaired by scaling: use bf16, or look for the layer that explodes.",
    ),
    Sign(
        "step_s",
        "s",
        "time",
        "step",
        "Wall time from one boundary to the next, evaluations and saves left out, waiting for data included.",
        "Watch its trend: a leak, a throttled device or a slow file system makes it grow.",
        is_timing=True,
    ),
    Sign(
        "own_step_s",
        "s",
        "time",
        "step",
        "Time of a rank's own work in a step: without waiting for other ranks.",
        "Ranks wait for the slowest. One that needs longer than the others slows all of them.",
        is_timing=True,
    ),
    Sign(
        "data_wait_s",
        "s",
        "time",
        "step",
        "Time in which the training waited for its next batch.",
        "More loader workers, larger prefetch, or data that is tokenised before.",
        is_timing=True,
    ),
    Sign(
        "tokens_per_s",
        "tokens/s (samples/s where batches have no tokens)",
        "time",
        "gather",
        "Throughput of all ranks together.",
        "Judge changes of batch size and accumulation by this, not by the step time.",
        is_timing=True,
    ),
    Sign(
        "phase",
        "index into " + ", ".join(PHASES),
        "time",
        "step",
        "Longest phase since the boundary before.",
        "Evaluation and checkpoints that take longer and longer: see `phase_s`.",
    ),
    Sign(
        "phase_s",
        "s",
        "time",
        "step",
        "Duration of that phase.",
        "Six times its usual duration is a stall: a full disk, a slow network, a rank that is stuck.",
        is_timing=True,
    ),
    Sign(
        "memory_bytes",
        "bytes",
        "memory",
        "step",
        "Memory in use: on a GPU, the most that tensors held since the last boundary; on a CPU, the resident set.",
        "A rise from step to step is a leak: a list of losses with their graphs, a cache without a bound.",
        is_timing=True,
    ),
    Sign(
        "memory_limit_bytes",
        "bytes",
        "memory",
        "step",
        "Memory that the rank may use: of the GPU, of its cgroup, or of the machine.",
        "Leave a twentieth free: evaluation and checkpoints need some.",
        is_timing=True,
    ),
    Sign(
        "checkpoint_age_steps",
        "steps",
        "checkpoints",
        "gather",
        "Steps since the newest committed checkpoint: what a failure now would cost.",
        "`steer save` makes one now; `checkpoint_steps` sets the interval.",
    ),
    Sign(
        "checkpoint_interval_steps",
        "steps",
        "checkpoints",
        "gather",
        "Steps from one checkpoint to the next, as set now (the knob `checkpoint_steps`); 0: only when asked.",
        "An interval that costs more time after a failure than saving costs: shorten it.",
    ),
    Sign(
        "eval/<set>_loss",
        "as the training defines it",
        "loss",
        "evaluation",
        "Loss on an evaluation set.",
        "Rising while the training loss falls is over-fitting: stop, roll back to the best, or raise weight decay.",
    ),
    Sign(
        "heldout/<name>_loss",
        "as the training defines it",
        "heldout",
        "evaluation",
        "Loss on named older data that the training no longer sees.",
        "If it rises, the model forgets: mix the older data in again, or lower the learning rate.",
    ),
    Sign(
        "source_loss/<source>",
        "as the training defines it",
        "loss",
        "gather",
        "Mean training loss of a source's samples of a step, over all ranks, every ten steps.",
        "Compare a source with its own past: the level differs between sources. It is what automatic mixtures go by.",
    ),
    Sign(
        "source_samples/<source>",
        "samples",
        "loss",
        "gather",
        "Samples that a source has given on this branch so far, every ten steps.",
        "Against the source's records it tells how often they were repeated.",
    ),
    Sign(
        "eval_loss/<source>",
        "as the training defines it",
        "loss",
        "evaluation",
        "Mean loss on the records that a source holds out of the training (`held_out`), or on a slice of them.",
        "The highest one is where the model is weak, if its data is not noise: `steer data weak` ranks them.",
    ),
    Sign(
        "eval_error/<source>",
        "as the training defines it",
        "loss",
        "evaluation",
        "Standard error of `eval_loss/<source>`, over the records that were looked at.",
        "A change or a difference of less than two of them is noise: hold out more records.",
    ),
    Sign(
        "weight_norm/<group>",
        "L2 norm",
        "layers",
        "gather",
        "Norm of the weights of a group of layers.",
        "Steady slow growth is normal; growth by a factor within a window is not.",
    ),
    Sign(
        "layer_grad_norm/<group>",
        "L2 norm",
        "layers",
        "gather",
        "Norm of the gradient of a group of layers, before clipping.",
        "Groups differ by a factor of ten, not of a million: zero in one group means that nothing reaches it.",
    ),
    Sign(
        "update_norm/<group>",
        "L2 norm",
        "layers",
        "gather",
        "Norm of the change of a group's weights in one step.",
        "It follows the learning rate; a jump without one is an outlier of the optimizer's state.",
    ),
    Sign(
        "update_ratio/<group>",
        "1",
        "layers",
        "gather",
        "Norm of the change of a group's weights in one step, divided by the norm of the weights.",
        "About 1e-3 is usual. 1e-1: the learning rate is far too high; 1e-6: the group does not learn.",
    ),
    Sign(
        "hidden_std/<block>",
        "as the activations",
        "hooks",
        "hooks",
        "Standard deviation of the hidden states behind a block.",
        "A collapse to zero: all inputs look the same to the layers behind it.",
    ),
    Sign(
        "dormant/<block>",
        "share, 0 to 1",
        "hooks",
        "hooks",
        "Share of units whose mean activation is at most 0.025 of their layer's mean (ReDo).",
        "A growing share is lost capacity: lower the learning rate, or reset the layer with `steer reset`.",
    ),
    Sign(
        "attention_entropy/<block>",
        "share of the maximum, 0 to 1",
        "hooks",
        "hooks",
        "Mean entropy of the attention weights, divided by the logarithm of the number of keys.",
        "Near zero every query looks at one key (entropy collapse): lower the learning rate, or use QK-norm.",
    ),
    Sign(
        "attention_logit_max/<block>",
        "1",
        "hooks",
        "hooks",
        "Largest attention logit, after scaling and before the softmax.",
        "Above 100 the softmax is saturated: QK-norm, QK-clip, or a lower learning rate.",
    ),
    Sign(
        "qk_entropy/<block>",
        "share of the maximum, 0 to 1",
        "hooks",
        "hooks",
        "Spectral entropy of the QK product on a fixed probe: of its singular values, divided by its maximum.",
        "A sudden fall comes long before the loss moves: save now, and lower the learning rate of the attention.",
    ),
    Sign(
        "spike_score",
        "share, 0 to 1",
        "loss",
        "derived",
        "Share of the last 10,000 steps at which the loss was an outlier.",
        "Zero is the anchor. A growing score asks for clipping, a longer warm-up or a lower learning rate.",
    ),
    Sign(
        "dynamics/state",
        "number of the state",
        "dynamics",
        "derived",
        "Most probable state of the model of training dynamics.",
        "States are numbered from calm to bad; their names stand with the model.",
    ),
    Sign(
        "dynamics/bad_probability",
        "probability",
        "dynamics",
        "derived",
        "Probability that the training is in a bad state, by the model of training dynamics.",
        "A second opinion, not a proof: look at loss and gradient norm before you act on it.",
    ),
)
"""All signs."""


def sign_of(name: str) -> Sign | None:
    """Return the sign with this name, or None if the catalogue has none."""
    return next((sign for sign in SIGNS if sign.matches(name)), None)


def own_name(name: str) -> str:
    """Return the run's own part of a sign's name (`h.3` of `hidden_std/h.3`), or an empty string."""
    sign = sign_of(name)
    return name.removeprefix(sign.prefix).removesuffix(sign.suffix) if sign and sign.prefix else ""


def names_of(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that belong to a pattern, in their order."""
    prefix, _, rest = pattern.partition("<")
    suffix = rest.partition(">")[2]
    return [
        name
        for name in names
        if name.startswith(prefix) and name.endswith(suffix) and len(name) > len(prefix) + len(suffix)
    ]
