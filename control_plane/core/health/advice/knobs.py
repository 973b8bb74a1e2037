"""Explanations of the knobs: what each does to a training, and what people do with it."""

from collections.abc import Mapping

from control_plane.core.health.advice.entry import Explanation


def _knob(name: str, title: str, meaning: str, *actions: str, see: tuple[str, ...] = ()) -> Explanation:
    return Explanation(name, "knob", title, meaning, actions, see)


_KNOBS = (
    _knob(
        "lr",
        "Learning rate",
        "Size of a step. The most important knob: too high and the loss spikes or diverges, too low and time is "
        "wasted. A set value keeps the shape of the rest of the schedule, unless it is held.",
        "The loss spikes or rises: halve it.",
        "The loss is flat and the gradient norm is calm: halve it late in a run, double it early in one.",
        "Never more than a factor of two at once, and save first.",
        see=("slow_divergence", "plateau", "update_ratio/<group>"),
    ),
    _knob(
        "weight_decay",
        "Weight decay",
        "Share of the weights (times the learning rate) that is taken away at every step. It bounds the weights' "
        "norm, and works against over-fitting. Biases and norms usually have none.",
        "0.1 is usual for language models, 0.01 for fine-tuning.",
        "Evaluation loss rises while training loss falls: raise it.",
        see=("weight_norm/<group>",),
    ),
    _knob(
        "betas",
        "Adam's betas",
        "Decay rates of Adam's first and second moment: how many steps it averages over, about 1 / (1 - beta).",
        "Loss spikes: a second beta of 0.95 instead of 0.999 forgets a spike sooner.",
        "A change counts slowly: the moments keep what they have.",
        see=("loss_spike",),
    ),
    _knob(
        "eps",
        "Adam's epsilon",
        "Added to the root of the second moment, so that nothing is divided by zero. Weights with tiny gradients "
        "take larger steps the smaller it is.",
        "1e-8 is usual; 1e-6 or 1e-5 calms trainings in low precision.",
    ),
    _knob(
        "momentum",
        "Momentum",
        "Share of the last step that goes into the next one, for SGD.",
        "0.9 is usual. With oscillations lower it, or lower the learning rate.",
    ),
    _knob(
        "gradient_clipping",
        "Gradient clipping",
        "Norm that gradients are cut to; 0 does not cut. It limits what one bad batch can do.",
        "About the usual gradient norm of the run; 1.0 for most language models.",
        "If every step is clipped, it is a lower learning rate in disguise.",
        see=("grad_norm", "gradient_spike", "max_grad_norm"),
    ),
    _knob(
        "dropout",
        "Dropout",
        "Probability with which activations are set to zero while training. It works against over-fitting and makes "
        "the training loss higher and noisier.",
        "0 for large data seen once; 0.1 where data is seen often.",
        "Evaluation loss rises while training loss falls: raise it.",
    ),
    _knob(
        "logging_steps",
        "Logging interval",
        "Steps from one logged loss to the next, and from one gather of the signs of all ranks to the next.",
        "Shorter finds a straggling rank sooner; the training itself does not notice.",
        see=("loss",),
    ),
    _knob(
        "eval_steps",
        "Evaluation interval",
        "Steps from one evaluation to the next.",
        "An evaluation should take a few percent of the time at most.",
        see=("eval/<set>_loss",),
    ),
    _knob(
        "checkpoint_steps",
        "Checkpoint interval",
        "Steps from one checkpoint to the next; 0: only when asked. A failure costs at most the steps since the "
        "last one.",
        "The square root of twice the cost of a save times the time between failures is the classic choice (Young).",
        see=("checkpoint_too_old", "checkpoint_age_steps"),
    ),
    _knob(
        "total_steps",
        "Last step",
        "Step at which the training ends. The learning rate's schedule is not stretched with it.",
        "If you extend a run, plan the rest of its schedule, too: `steer schedule`.",
        see=("lr",),
    ),
    _knob(
        "PATTERN:ATTRIBUTE",
        "Number of a module",
        "A number that modules of the model hold, for all modules whose name matches: `*.attn.*:p`, `*ln*:eps`.",
        "`steer knobs RUN` lists what a run has. Try it on a fork first: it changes what the model computes.",
    ),
    _knob(
        "loss/<name>",
        "Knob of the script",
        "A value that the training script has registered itself, for example the weight of a part of its loss. The "
        "script says what it means: `steer knobs RUN`.",
        "Change it by a small factor, and compare the parts of the loss.",
    ),
)

KNOBS: Mapping[str, Explanation] = {knob.name: knob for knob in _KNOBS}
