"""Sections of a run's config: keys, bounds and defaults."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from control_plane.core.model.data import MAX_SOURCES, SourceName, Weight
from control_plane.core.model.limits import Limit
from control_plane.core.rules.capacity import ACCELERATOR
from ray_jobs.process.timeouts import HANG_AFTER_S, USER_CODE_S

MOST_STEPS = 2**31
MOST_RANKS = 4096  # what the boundary protocol is simulated with

_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
LABEL_SELECTOR = rf"^(!?{_LABEL}|!?in\({_LABEL}(, ?{_LABEL})*\))$"
"""Syntax of Ray's label selectors (2.60)."""

ACCELERATOR_TYPE = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

MAX_SCHEDULED = 1000
"""Scheduled changes of weights: more is a function of the step, which is a rule's or an agent's work."""

MOST_USER_CODE_S = 7 * 24 * 3600.0

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base class of a config section: rejects unknown keys, does not coerce values, is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ScalingSettings(Section):
    """Number and devices of the ranks, and their elastic bounds.

    The batch sizes apply to `ranks`. With `min_ranks` the run continues on fewer when nodes fail, and on up to
    `max_ranks` (by default `ranks`) when there are more; the global batch stays the same.
    """

    ranks: int = Field(default=2, ge=1, le=MOST_RANKS)
    min_ranks: int | None = Field(default=None, ge=1, le=MOST_RANKS)
    max_ranks: int | None = Field(default=None, ge=1, le=MOST_RANKS)
    cpus_per_rank: float = Field(default=1, gt=0)
    # auto: GPUs with NCCL when the cluster has any, else CPUs with gloo
    use_gpu: Literal["auto", True, False] = "auto"
    # other resources of a rank, by the names that the cluster's nodes declare
    resources_per_rank: dict[str, Positive] = {}
    # pack: as few nodes as possible; spread: as many
    placement: Literal["pack", "spread"] = "pack"
    # true: pack on one node, or spread on as many nodes as ranks, or do not start
    strict: bool = False
    # selectors for the labels of the ranks' nodes: a value, "!value", "in(a, b)" or "!in(a, b)"
    labels: dict[str, Annotated[str, Field(pattern=LABEL_SELECTOR)]] = {}
    # as Ray names it: A100, H100, ...
    accelerator_type: str | None = Field(default=None, pattern=ACCELERATOR_TYPE)

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest number of ranks."""
        return self.min_ranks or self.ranks, self.max_ranks or self.ranks

    @model_validator(mode="after")
    def _bounds_hold_the_ranks(self) -> Self:
        least, most = self.bounds
        if not least <= self.ranks <= most:
            raise ValueError(f"ranks is {self.ranks}, but must be from min_ranks {least} to max_ranks {most}")
        return self

    @model_validator(mode="after")
    def _strict_has_one_size(self) -> Self:
        least, most = self.bounds
        if self.strict and least != most:
            raise ValueError(
                f"strict is true, which needs a fixed number of ranks, but they may be from {least} to {most}: Ray "
                "Train chooses among them by resources, not by nodes"
            )
        return self

    @model_validator(mode="after")
    def _resources_have_no_setting_of_their_own(self) -> Self:
        for name in self.resources_per_rank:
            if name in ("CPU", "GPU") or name.startswith(ACCELERATOR):
                raise ValueError(
                    f"resources_per_rank.{name} cannot be set: use cpus_per_rank, use_gpu and accelerator_type"
                )
        return self


class Gpt2Workload(Section):
    """Workload that trains a GPT-2 built from `model` on the text of `data`."""

    kind: Literal["gpt2"]


class ScriptWorkload(Section):
    """Workload that runs the user's own training script."""

    kind: Literal["script"]
    path: str
    args: list[str] = []


class SecretVariable(Section):
    """Environment variable whose value is read where the run is submitted, and stored beside the config."""

    secret: Literal[True]


class ModelSettings(Section):
    """Shape of the GPT-2."""

    n_layer: Count
    n_head: Count
    n_embd: Count
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd is {self.n_embd}, but must be a multiple of n_head, which is {self.n_head}")
        return self


class DataSettings(Section):
    """Source of the text and its division into blocks. Sizes are in bytes of UTF-8 text, blocks in tokens.

    `tail` applies to scripts, too: it drops or keeps the samples of an epoch that do not fill a global batch.
    """

    source: Literal["stdlib", "wikitext2"] | None = None
    # keep: the epoch ends with a smaller step, as in a script that is started by hand
    tail: Literal["drop", "keep"] = "drop"
    path: str | None = None
    block_size: int = Field(default=128, ge=2, le=65_536)
    vocab_size: int = Field(default=2048, ge=257, le=1_000_000)  # 256 bytes and the end-of-text token
    max_train_bytes: Count | None = None
    max_eval_bytes: Count | None = None

    @property
    def is_of_a_script(self) -> bool:
        """Return whether only `tail` is set, as a script's config may."""
        return self == DataSettings(tail=self.tail)

    @model_validator(mode="after")
    def _path_has_a_reader(self) -> Self:
        if self.source != "wikitext2" and self.path is not None:
            raise ValueError("path is only for source wikitext2; source stdlib reads Python's own standard library")
        return self


class ScheduledWeights(Section):
    """Weights that hold after a step; sources that are not named keep theirs."""

    step: int = Field(ge=1, le=MOST_STEPS)
    weights: dict[SourceName, Weight] = Field(min_length=1, max_length=MAX_SOURCES)


class MixtureSettings(Section):
    """How samples are drawn from the sources.

    A source's share is in proportion to its weight to the power of 1 / `temperature`. A sample is one record, or, with
    unit `packed`, a block of `data.block_size` tokens of whole documents.
    """

    temperature: float = Field(default=1.0, ge=0.01, le=100)
    unit: Literal["document", "packed"] = "document"
    schedule: list[ScheduledWeights] = Field(default=[], max_length=MAX_SCHEDULED)

    @model_validator(mode="after")
    def _steps_ascend(self) -> Self:
        steps = [entry.step for entry in self.schedule]
        if steps != sorted(set(steps)):
            raise ValueError("the steps of schedule must ascend")
        return self

    def planned(self) -> tuple[tuple[int, dict[str, float]], ...]:
        """Return the schedule as steps and weights."""
        return tuple((entry.step, dict(entry.weights)) for entry in self.schedule)


class CheckpointSettings(Section):
    """Interval of automatic checkpoints (0: never) and their retention.

    Kept are the newest `keep_last`, the first of every `keep_every_steps` steps, the `keep_best` best by `best_metric`,
    and the pinned ones. With `overlap` the state is copied beside the next forward and backward pass.
    """

    every_steps: int = Field(default=100, ge=0, le=MOST_STEPS)
    overlap: bool = True
    keep_last: int = Field(default=3, ge=1, le=MOST_STEPS)
    keep_every_steps: int = Field(default=0, ge=0, le=MOST_STEPS)
    keep_best: int = Field(default=0, ge=0, le=MOST_STEPS)
    best_metric: str = "eval_loss"
    best_mode: Literal["min", "max"] = "min"

    def retention(self) -> dict[str, Any]:
        """Return the arguments of `core.retention.Retention`."""
        return self.model_dump(exclude={"every_steps", "overlap"})


class DigestSettings(Section):
    """Interval at which each rank records a digest of its live state in the journal (0: never).

    Runs, and replays, are compared by their digests.
    """

    every_steps: int = Field(default=100, ge=0, le=MOST_STEPS)


class RecoverySettings(Section):
    """Hang detection, warm spares and crash-loop limits.

    A rank that is stopped, or silent while no rank makes progress, is declared dead after `hang_after_s` seconds; one
    without progress outside of a collective after `user_code_s` (see `verdict`). `spares` is the number of warm spare
    processes per node; auto: as many as ranks on one node. A run in a crash loop (failures without a new step) is
    closed as failed after `give_up_after_s`; null: only if it fails in the same way each time, see `core.crash_loop`.
    """

    hang_after_s: float = Field(default=HANG_AFTER_S, ge=2)
    user_code_s: float = Field(default=USER_CODE_S, ge=30, le=MOST_USER_CODE_S)
    spares: Literal["auto"] | Annotated[int, Field(ge=0, le=64)] = "auto"
    start_timeout_s: float = Field(default=20, ge=1)
    give_up_after_s: float | None = Field(default=None, gt=0)


class PauseSettings(Section):
    """Offloading of GPU memory during a pause.

    With `offload` the ranks' states are moved to host memory while the run is paused, which frees their GPUs. Where
    DeepSpeed cannot do that (see `paused_memory`), the ranks' logs say why, and the run pauses without it.
    """

    offload: bool = False


class LimitSettings(Limit):
    """Limits for one knob, or for every knob that matches a pattern; absent keys do not limit.

    `min` and `max` bound the value, `max_factor` one change, and `cool_down_s` the time between two changes; `roles`
    lists the token roles that may change it. The first match applies, a knob's own name before any pattern.
    """

    model_config = ConfigDict(strict=True)
    # Strict mode takes only a tuple, and YAML has lists. Viewers may not change anything in any case.
    roles: Annotated[tuple[Literal["operator", "agent", "admin"], ...], Field(min_length=1, strict=False)] | None = None


_OPEN = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class TrainingSettings(TypedDict, total=False):
    """Arguments of `transformers.TrainingArguments`: the common ones have bounds, all are passed on unchanged."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    max_steps: Count
    num_train_epochs: Positive
    per_device_train_batch_size: Count
    per_device_eval_batch_size: Count
    gradient_accumulation_steps: Count
    learning_rate: Positive
    lr_scheduler_type: str
    warmup_steps: NotNegative
    weight_decay: NotNegative
    adam_beta1: Beta
    adam_beta2: Beta
    adam_epsilon: Positive
    max_grad_norm: NotNegative
    logging_steps: Positive
    eval_steps: Positive


class ZeroSettings(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    stage: Annotated[int, Field(ge=0, le=3)]


class DeepSpeedSettings(TypedDict):
    """DeepSpeed config, parsed by DeepSpeed itself; only the ZeRO stage is validated here."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    zero_optimization: ZeroSettings
