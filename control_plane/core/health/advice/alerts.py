"""Explanations of the kinds of alerts."""

from collections.abc import Mapping

from control_plane.core.health.advice.entry import Explanation
from control_plane.core.model.health import AlertKind


def _alert(
    title: str, meaning: str, *actions: str, see: tuple[str, ...] = ()
) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
    return title, meaning, actions, see


_ALERTS: Mapping[AlertKind, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "non_finite": _alert(
        "Loss or gradient is not a number",
        "The loss or the gradient norm became NaN or infinite. One such update makes every weight NaN, and no later "
        "step brings them back. Usual causes: a learning rate that is too high, a division by zero or a logarithm "
        "of zero in the loss, an empty or corrupt batch, numbers too large for fp16.",
        "Roll back to the newest trusted checkpoint with half the learning rate: `steer rollback RUN trusted --set "
        "'lr*=0.5'`.",
        "If it comes back at the same samples, skip them, and look at the data there.",
        "If it comes back anywhere, train in bf16 or fp32, clip gradients, and look for logarithms and divisions in "
        "the loss.",
        see=("loss", "grad_norm", "lr", "gradient_clipping"),
    ),
    "gradient_overflow": _alert(
        "Gradients overflowed in fp16",
        "In fp16 the loss is multiplied by a loss scale, so that small gradients do not become zero. Here the "
        "scaled gradients exceeded what fp16 holds; the optimizer skipped the step and the scale was lowered. The "
        "weights are as they were. This is routine in the first steps, and about once in a thousand steps later on.",
        "One alone: do nothing.",
        "Many in a short time: look at the gradient norm; if it grows, lower the learning rate or clip.",
        "Or train in bf16: it has the range of fp32, and needs no loss scale.",
        see=("loss_scale", "skipped_steps", "loss_scale_exhausted"),
    ),
    "loss_scale_exhausted": _alert(
        "Loss scale cannot fall any further",
        "Gradients overflow although the loss scale is at its minimum, or they overflow step after step. Every such "
        "step is skipped: the training no longer learns.",
        "Roll back to the newest trusted checkpoint with half the learning rate.",
        "If it comes back: bf16 instead of fp16, gradient clipping, or QK-norm where attention logits are large.",
        see=("loss_scale", "loss_scale_min", "exploding_layer"),
    ),
    "loss_spike": _alert(
        "Loss spike",
        "The loss jumped far out of its recent range. Small ones often heal by themselves in some tens of steps; "
        "large ones cost more than a rollback, or end in a divergence. Usual causes: a bad batch, a learning rate "
        "that is near the limit of stability, a second moment of Adam that is too slow (beta2 of 0.999).",
        "Wait some tens of steps: if the loss comes back by itself, go on.",
        "Otherwise roll back to the newest trusted checkpoint and skip the samples of the spike; PaLM went back "
        "about 100 steps and skipped 200 to 500 batches.",
        "If spikes come again elsewhere: lower the learning rate, beta2 of 0.95, gradient clipping.",
        see=("loss", "spike_score", "gradient_spike", "betas"),
    ),
    "gradient_spike": _alert(
        "Gradient spike",
        "The norm of the gradient jumped by a factor. With clipping the step was shortened; without, the weights "
        "took all of it. A gradient spike often comes one step before a loss spike.",
        "With gradient clipping, look whether the loss follows; if not, do nothing.",
        "Without, set it near the usual norm: `steer set RUN gradient_clipping=1.0`.",
        "If the loss follows, see `loss_spike`.",
        see=("grad_norm", "gradient_clipping", "loss_spike"),
    ),
    "slow_divergence": _alert(
        "Loss rises slowly",
        "The smoothed loss has been rising from its best level, by more than noise explains. No single step looks "
        "wrong. Usual causes: a learning rate that is too high for this stage, a warm-up that ends too high, data "
        "that has changed, a loss of precision.",
        "Halve the learning rate, and watch for some hundred steps.",
        "If it goes on, roll back to the best trusted checkpoint with a lower learning rate.",
        "If the data has changed at the onset, the rise may be the new data's level: compare evaluation losses.",
        see=("loss", "lr", "grad_norm"),
    ),
    "plateau": _alert(
        "Loss no longer falls",
        "Over two windows the smoothed loss has surely fallen by less than 3 %, while the learning rate is up. "
        "Nothing is damaged; time is being spent. Either the model has learned what it can at this rate, or it is "
        "stuck.",
        "Lower the learning rate (`steer set RUN 'lr*=0.5'`), or let the schedule begin its decay: `steer schedule`.",
        "If the loss never fell: raise the learning rate, and check that parameters are trained and labels are right.",
        "If the evaluation loss rises meanwhile, stop: it is over-fitting.",
        see=("loss", "lr", "eval/<set>_loss"),
    ),
    "forgetting": _alert(
        "Model forgets older data",
        "The loss on held-out data that the training no longer sees has risen from its best value, in two "
        "evaluations one after the other. The model gets better at the new data and worse at the old.",
        "Mix a share of the older data in (1 % to 10 % is common).",
        "Lower the learning rate: forgetting grows with the distance that the weights travel.",
        "Go back to the checkpoint before the onset if the older data matters more.",
        see=("heldout/<name>_loss", "lr"),
    ),
    "dead_units": _alert(
        "Units are dormant, or hidden states have collapsed",
        "A large and growing share of a layer's units no longer reacts to any input, or all inputs give the same "
        "hidden state. That capacity is lost, and gradients seldom bring it back. Usual causes: one large update (a "
        "spike, a learning rate that is too high) that pushes ReLU units below zero for ever, missing normalisation.",
        "Roll back to before the onset with a lower learning rate.",
        "Reset the layer, if the training can afford it: `steer reset RUN PATTERN`.",
        "For a new run: a longer warm-up, GELU or leaky ReLU, normalisation before the layer.",
        see=("dormant/<block>", "hidden_std/<block>"),
    ),
    "vanishing_layer": _alert(
        "Gradient of a layer has vanished",
        "A group of layers receives next to no gradient any more, compared with its own past and with the other "
        "groups. It no longer learns. Usual causes: a saturated softmax or sigmoid above it, dead units, a detached "
        "tensor, a gradient too small for fp16.",
        "Look at the blocks above it: `dead_units` and `attention_blow_up` name the cause.",
        "Roll back to before the onset, with a lower learning rate.",
        "If you froze it on purpose, use `steer freeze`: a frozen group is not judged.",
        see=("layer_grad_norm/<group>", "dead_units"),
    ),
    "exploding_layer": _alert(
        "A layer explodes",
        "The gradient, the update or the weights of one group of layers have grown by a large factor, while the "
        "total may still look normal. The whole training usually follows.",
        "Lower the learning rate of that group: `steer set RUN 'lr*=0.1' --group NAME`.",
        "Clip gradients, and roll back to the newest trusted checkpoint if the loss has moved.",
        see=("layer_grad_norm/<group>", "update_ratio/<group>", "weight_norm/<group>"),
    ),
    "attention_blow_up": _alert(
        "Attention blows up or collapses",
        "Attention logits are beyond 100, where the softmax is saturated, or the entropy of attention has suddenly "
        "fallen out of its window. It is an early sign: the loss often moves only hundreds or thousands of steps "
        "later.",
        "Save now, and lower the learning rate: `steer save RUN`, `steer set RUN 'lr*=0.5'`.",
        "For a new run: QK-norm, QK-clip or logit soft-capping.",
        see=("attention_logit_max/<block>", "attention_entropy/<block>", "qk_entropy/<block>"),
    ),
    "straggling_rank": _alert(
        "One rank is slow",
        "A rank needs longer for its own part of a step than the others, and all of them wait for it. Usual causes: "
        "another process on its machine, a throttled or faulty GPU, longer samples on that rank, a slow disk.",
        "`steer nodes` and `steer doctor` show what the node carries.",
        "Drain the node; an elastic run goes on without it.",
        "If the slow rank changes, the samples differ in length: pack or sort them.",
        see=("own_step_s", "step_s"),
    ),
    "stalled_phase": _alert(
        "A phase took far too long",
        "An evaluation, a checkpoint or another phase between two steps took more than six times its usual duration.",
        "A checkpoint: check the storage (`steer doctor`), and free space.",
        "An evaluation: see whether its set has grown, or the node is busy.",
        see=("phase", "phase_s"),
    ),
    "data_starvation": _alert(
        "Training waits for data",
        "For most of the last steps, a large share of the time went into waiting for the next batch: the "
        "accelerators idle.",
        "More loader workers (`dataloader_num_workers`) and prefetch, on cores that are free.",
        "Tokenise before the training, and keep the data on a local disk.",
        see=("data_wait_s", "step_s", "tokens_per_s"),
    ),
    "memory_near_limit": _alert(
        "Memory is nearly full",
        "A rank uses more than 95 % of the memory that it may use. The next longer batch, evaluation or checkpoint "
        "may end the run.",
        "A smaller micro-batch with more gradient accumulation, or activation checkpointing.",
        "If it grows from step to step, it is a leak: a list of losses that keep their graphs is the usual one.",
        see=("memory_bytes", "memory_limit_bytes"),
    ),
    "checkpoint_too_old": _alert(
        "Newest checkpoint is too old",
        "No checkpoint was committed for more than two and a half intervals: saves fail or take too long. A failure "
        "now costs all steps since.",
        "`steer save RUN`, and read the reason if it fails.",
        "Check space and speed of the storage: `steer doctor`.",
        see=("checkpoint_age_steps", "checkpoint_steps"),
    ),
    "bad_dynamics": _alert(
        "Training dynamics look bad",
        "A small hidden Markov model, fitted to the signs of earlier runs, takes the training to be in a state that "
        "went wrong in those runs. It sees loss and gradients together, and may be early; it may also be wrong.",
        "Look at loss, gradient norm and other alerts before you act.",
        "Save now, so that there is something to go back to.",
        see=("dynamics/state", "dynamics/bad_probability"),
    ),
}

ALERTS: Mapping[str, Explanation] = {
    kind: Explanation(kind, "alert", title, meaning, actions, see)
    for kind, (title, meaning, actions, see) in _ALERTS.items()
}
