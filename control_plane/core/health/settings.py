"""Settings of the health monitor, the config's section `health`: switches, intervals, windows and thresholds."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from control_plane.core.health.signs import SignGroup
from control_plane.core.model.health import AlertKind

FEATURE_COUNT = 3
"""Features of the model of training dynamics."""

Steps = Annotated[int, Field(ge=1, le=1_000_000)]
WindowSteps = Annotated[int, Field(ge=8, le=4096)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Samples = Annotated[int, Field(ge=1, le=4096)]


class HealthSection(BaseModel):
    """Base class of the sections of `health`: rejects unknown keys, does not coerce values, is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SpikeSettings(HealthSection):
    """Outlier of a sign above a window of its own past.

    An outlier is `sigmas` deviations above the median, and at least `factor` times the median; of a sign that is always
    positive also `log_sigmas` deviations of its logarithm. Two outliers within three steps are a spike; one is if it is
    `extreme` times as far.
    """

    window_steps: WindowSteps = 128
    # steps before the first verdict
    least_steps: WindowSteps = 64
    sigmas: Positive = 6.0
    log_sigmas: Positive = 4.5
    factor: Annotated[float, Field(ge=1)] = 1.15
    extreme: Annotated[float, Field(ge=1)] = 2.0
    # steps without an outlier after which the alert is cleared
    clear_steps: Steps = 10


class NonFiniteSettings(HealthSection):
    """Loss or gradient norm that is not a finite number."""

    clear_steps: Steps = 10


class PrecisionSettings(HealthSection):
    """Overflows of an fp16 training."""

    # overflows one after the other after which the loss scale counts as exhausted
    consecutive: Steps = 24
    clear_steps: Steps = 50


class DivergenceSettings(HealthSection):
    """Smoothed loss that rises, compared with the best window so far."""

    window_steps: WindowSteps = 128
    # rise above the best window, as a share of its level and in standard errors
    rise: Share = 0.1
    sigmas: Positive = 6.0


class PlateauSettings(HealthSection):
    """Smoothed loss that no longer falls, over two windows.

    A window is `window_steps`, or `window_share` of the steps so far if that is more: progress slows down with the
    logarithm of the steps. Two windows are flat if they surely fall by less than `least_improvement` of the level.
    """

    window_steps: WindowSteps = 200
    window_share: Share = 0.2
    least_improvement: Share = 0.03
    # a loss below this share of the first one is converged, not stuck
    converged_share: Share = 0.1


class ForgettingSettings(HealthSection):
    """Held-out loss above its best value, in two evaluations one after the other."""

    rise: Share = 0.05
    sigmas: Positive = 4.0
    least_evaluations: Samples = 3


class DeadUnitSettings(HealthSection):
    """Share of dormant units, and hidden states that have collapsed."""

    # dormant at least, and so much above the median of the last measurements
    share: Share = 0.5
    blow: Share = 0.35
    # dormant at least, however slowly it came
    nearly_all: Share = 0.92
    # standard deviation of hidden states, as a share of its median
    collapse: Share = 0.02


class LayerSettings(HealthSection):
    """Gradient and update norms of groups of layers, compared with their own past and with the other groups."""

    window_samples: Samples = 32
    least_samples: Samples = 5
    vanish: Share = 1e-4
    vanish_beside_others: Share = 1e-7
    explode: Annotated[float, Field(gt=1)] = 100.0
    update_ratio: Positive = 0.1
    update_ratio_growth: Annotated[float, Field(gt=1)] = 10.0
    weight_growth: Annotated[float, Field(gt=1)] = 3.0


class AttentionSettings(HealthSection):
    """Attention logits and entropies."""

    logit_max: Positive = 100.0
    window_samples: Samples = 128
    least_samples: Samples = 16
    sigmas: Positive = 5.0
    # fall below the median, as a share of it
    entropy_fall: Share = 0.5
    qk_entropy_fall: Share = 0.15


class StragglerSettings(HealthSection):
    """Rank whose own step takes longer than that of the others, in gathers one after the other."""

    # a rank's speed as a share of the median of the others
    speed: Share = 0.75
    # slower than its own jitter explains, in deviations of the logarithm
    sigmas: Positive = 4.0
    gathers: Samples = 2
    # gathers without one after which the alert is cleared
    clear_gathers: Samples = 4
    # difference in seconds below which nobody cares
    least_s: Positive = 0.02


class StallSettings(HealthSection):
    """Phase that takes much longer than it usually does."""

    factor: Annotated[float, Field(gt=1)] = 6.0
    least_s: Positive = 30.0
    least_samples: Samples = 3


class StarvationSettings(HealthSection):
    """Waiting for data, as a median over a window."""

    window_steps: WindowSteps = 20
    share: Share = 0.3
    least_s: Positive = 0.05


class MemorySettings(HealthSection):
    """Memory in use, as a share of the limit, for some steps one after the other."""

    share: Share = 0.95
    steps: Steps = 3


class CheckpointSettings(HealthSection):
    """Age of the newest checkpoint, in intervals; or in steps, if that is set.

    An age of less than `least_s` seconds, by the usual time of a step, is never too old: a save in the background takes
    seconds, in which a small model makes hundreds of steps.
    """

    intervals: Annotated[float, Field(gt=1)] = 2.5
    most_steps: Steps | None = None
    least_s: Annotated[float, Field(ge=0)] = 10.0


Probabilities = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=16)]
Rows = Annotated[list[list[float]], Field(min_length=2, max_length=16)]


class DynamicsModel(HealthSection):
    """Hidden Markov model with independent normal features, see `dynamics.py`. States are numbered from 0."""

    states: Annotated[list[str], Field(min_length=2, max_length=16)]
    bad: list[Annotated[int, Field(ge=0, le=15)]]
    block_steps: Annotated[int, Field(ge=2, le=10_000)] = 10
    start: Probabilities
    transition: Annotated[list[Probabilities], Field(min_length=2, max_length=16)]
    means: Rows
    deviations: Rows

    @model_validator(mode="after")
    def _shapes_agree(self) -> Self:
        count = len(self.states)
        rows = {"transition": self.transition, "means": self.means, "deviations": self.deviations}
        wrong = [name for name, value in rows.items() if len(value) != count]
        wrong += ["start"] if len(self.start) != count else []
        wrong += ["transition"] if any(len(row) != count for row in self.transition) else []
        wrong += [name for name in ("means", "deviations") if any(len(row) != FEATURE_COUNT for row in rows[name])]
        wrong += ["bad"] if any(state >= count for state in self.bad) else []
        if wrong:
            raise ValueError(f"{wrong[0]} does not fit {count} states and {FEATURE_COUNT} features")
        sums = [sum(self.start), *(sum(row) for row in self.transition)]
        if any(abs(total - 1.0) > 1e-6 for total in sums):
            raise ValueError("start and every row of transition must add up to 1")
        if any(value <= 0 for row in self.deviations for value in row):
            raise ValueError("deviations must be above 0")
        return self


class DynamicsSettings(HealthSection):
    """Model of training dynamics: probability of a bad state, and the blocks for which it lasts."""

    probability: Share = 0.95
    blocks: Samples = 3
    # the model; by default the one that is built in
    model: DynamicsModel | None = None


class SignSwitches(HealthSection):
    """Groups of signs that are measured."""

    loss: bool = True
    gradients: bool = True
    precision: bool = True
    schedule: bool = True
    time: bool = True
    memory: bool = True
    checkpoints: bool = True
    heldout: bool = True
    layers: bool = True
    hooks: bool = True
    dynamics: bool = True

    def has(self, group: SignGroup) -> bool:
        """Return whether the signs of a group are measured."""
        return bool(getattr(self, group))


class HealthSettings(HealthSection):
    """Section `health` of a run's config."""

    enabled: bool = True
    signs: SignSwitches = SignSwitches()
    # steps from one measurement by hooks to the next, which costs a few operations a block
    hook_steps: Steps = 100
    # tokens and layers of the probe for the QK spectral entropy
    probe_tokens: Annotated[int, Field(ge=8, le=4096)] = 128
    probe_layers: Annotated[int, Field(ge=1, le=64)] = 8
    # alerts that are not raised; the model of training dynamics is charted, and raises none unless asked
    silent: frozenset[AlertKind] = frozenset({"bad_dynamics"})

    non_finite: NonFiniteSettings = NonFiniteSettings()
    precision: PrecisionSettings = PrecisionSettings()
    loss_spike: SpikeSettings = SpikeSettings()
    gradient_spike: SpikeSettings = SpikeSettings(log_sigmas=6.0, factor=4.0)
    divergence: DivergenceSettings = DivergenceSettings()
    plateau: PlateauSettings = PlateauSettings()
    forgetting: ForgettingSettings = ForgettingSettings()
    dead_units: DeadUnitSettings = DeadUnitSettings()
    layers: LayerSettings = LayerSettings()
    attention: AttentionSettings = AttentionSettings()
    straggler: StragglerSettings = StragglerSettings()
    stall: StallSettings = StallSettings()
    starvation: StarvationSettings = StarvationSettings()
    memory: MemorySettings = MemorySettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    dynamics: DynamicsSettings = DynamicsSettings()

    @field_validator("silent", mode="before")
    @classmethod
    def _list_is_a_set(cls, value: object) -> object:
        # YAML and JSON have lists only.
        return frozenset(value) if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value) else value
