"""Random histories: what operators, faults and luck do to a world, from one seed."""

from contextlib import suppress
from typing import Any

from control_plane.core.boundary import MAX_COMMANDS_PER_PROPOSAL
from control_plane.core.model.errors import Refused
from control_plane.core.model.records import CheckpointCommitted
from control_plane.core.model.values import MAX_STEP
from tests.simulation.world.faults import CRASH_POINTS, Faults
from tests.simulation.world.operators import ADOPTED
from tests.simulation.world.parts import Parts
from tests.simulation.world.samples import DATA_KINDS
from tests.simulation.world.world import World

KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("set_learning_rate", {"value": 1e-4}),
    ("set_learning_rate", {"factor": 0.5}),
    ("set_learning_rate", {"factor": 2.0, "group": "decay"}),
    ("set_learning_rate", {"value": 3e-4, "group": 1}),
    ("set_learning_rate", {"factor": 0.9, "group": "unheard of"}),
    ("set_knobs", {"changes": [{"knob": "weight_decay", "value": 0.3, "group": "decay"}]}),
    ("set_knobs", {"changes": [{"knob": "gradient_clipping", "factor": 0.5}, {"knob": "weight_decay", "factor": 2.0}]}),
    ("set_knobs", {"changes": [{"knob": "gradient_clipping", "value": 2.0}, {"knob": "unheard of", "value": 1.0}]}),
    ("set_learning_rate", {"value": 0.5}),
    ("set_schedule", {"shape": "cosine", "end": 0.1}),
    ("set_schedule", {"shape": "linear"}),
    ("freeze", {"parameters": "*"}),
    ("freeze", {"parameters": "head"}),
    ("unfreeze", {"parameters": "head"}),
    ("unfreeze", {"parameters": "*"}),
    ("reset_parameters", {"modules": "head", "seed": 7}),
    ("skip_samples", {"samples": 200}),
    ("run_action", {"name": "reshuffle"}),
    ("run_action", {"name": "unheard of"}),
    ("evaluate", {}),
    ("save_checkpoint", {}),
    ("pause", {}),
    ("resume", {}),
)


def troubles(seed: int) -> Faults:
    """Everything that can go wrong, each seed in another mixture."""
    heavy, light = (seed % 3) / 10, (seed % 5) / 100
    faults = Faults().crash_server(rate=light).drop(heavy).duplicate(heavy).delay(seed % 13)
    return faults.trouble_ranks(rate=0.05 + light, stuck=light / 2, killed=light * 2)


def act(world: World) -> None:
    """One random action."""
    luck = world.dice.random()
    if luck < 0.35:
        submit_something(world)
    elif luck < 0.38:
        cancel_something(world)
    elif luck < 0.39:
        keep_or_delete_something(world)
    elif luck < 0.41 and world.unanswered:
        command = world.dice.choice(list(world.unanswered.values()))
        world.try_send(command)
    elif luck < 0.43:
        world.crash_server()
    elif luck < 0.44:
        world.faults.stop_server(at=world.dice.choice(CRASH_POINTS))
    elif luck < 0.53 and world.server is None:
        world.restart_server()
    elif luck < 0.55:
        world.kill_trainers()
    elif luck < 0.565:
        world.lose_everything()
    elif luck < 0.59:
        world.damage_checkpoint()
    elif luck < 0.595:
        world.resume_run()
    elif world.fleet is None:
        world.start_trainers()
    world.tick()


def submit_something(world: World) -> None:
    """A random command; sometimes one for a later step, and now and then the end."""
    kind, body = world.dice.choice(KINDS)
    if world.dice.random() < 0.01:
        kind, body = "stop", {}
    step = world.fleet.step if world.fleet else 0
    later = step + world.dice.randint(0, 6) if kind != "resume" and world.dice.random() < 0.3 else None
    latest = max(step, later or 0) + world.dice.randint(0, 3) if world.dice.random() < 0.1 else None
    world.try_submit(kind, not_before_step=later, not_after_step=latest, based_on_seq=some_view(world), **body)


def some_view(world: World) -> int | None:
    """Which entry of the journal the operator has seen: mostly it does not say; the last, an old one, or none yet."""
    newest = len(world.disk.entries)
    some = (newest, max(0, newest - world.dice.randint(0, 9)), MAX_STEP)
    return world.dice.choice(some) if world.dice.random() < 0.2 else None


def keep_or_delete_something(world: World) -> None:
    """Pin, unpin or delete a checkpoint."""
    names = [each.checkpoint for each in world.server.state.checkpoints.existing] if world.server else list(world.files)
    if names:
        kind, pinned = world.dice.choice(
            (("pin_checkpoint", True), ("pin_checkpoint", False), ("delete_checkpoint", None))
        )
        body = {"pinned": pinned} if pinned is not None else {}
        world.try_submit(kind, based_on_seq=some_view(world), checkpoint=world.dice.choice(names[-3:]), **body)


def submit_many(world: World) -> None:
    """More commands at once than one proposal takes."""
    for number in range(MAX_COMMANDS_PER_PROPOSAL + 2):
        world.try_submit("set_learning_rate", factor=0.5 if number % 2 else 2.0)


def cancel_something(world: World) -> None:
    """Take back one of the last commands, settled or not."""
    lately = list(world.books.accepted)[-6:]
    if lately:
        world.try_submit("cancel", based_on_seq=some_view(world), command=str(world.dice.choice(lately)))


def change_data(world: World) -> None:
    """A random change of the sources; now and then everything is asked for at once."""
    dice, step = world.dice, world.fleet.step if world.fleet else 0
    for kind, body in dice.sample(DATA_KINDS, dice.choice((1, 1, 2, len(DATA_KINDS)))):
        later = step + dice.randint(0, 6) if dice.random() < 0.3 else None
        world.try_submit(kind, not_before_step=later, based_on_seq=some_view(world), **body)


def draw_through(seed: int, actions: int = 60, ranks: int = 2, branches: bool = False) -> World:
    """A whole history of changes of the data among everything else, healed and brought to its end."""
    world = World(seed, ranks, troubles(seed))
    world.goes_back_at_the_end = branches and seed % 2 == 0
    for _ in range(actions):
        if world.dice.random() < 0.15:
            change_data(world)
        (wander if branches else act_among_losses)(world)
    world.finish()
    return world


def live_through(
    seed: int, actions: int = 60, ranks: int = 3, parts: Parts = Parts(), deadly: bool = False, jumps: bool = True
) -> World:
    """A whole history, healed and brought to its end; a deadly one is about losses. Raises `Violation`."""
    world = World(seed, ranks, troubles(seed).jump_clock(3600.0 if jumps else 0.0), parts)
    for _ in range(actions):
        if deadly:
            act_among_losses(world)
        else:
            act(world)
    world.finish()
    return world


def act_among_losses(world: World) -> None:
    """One random action: many commands, many checkpoints, and a loss every dozen steps."""
    world.save_rate = 0.2
    luck = world.dice.random()
    if luck < 0.3:
        submit_something(world)
    elif luck < 0.32:
        submit_many(world)
    elif luck < 0.34:
        cancel_something(world)
    elif luck < 0.37:
        keep_or_delete_something(world)
    elif luck < 0.40:
        world.lose_everything()
    elif luck < 0.46:
        world.kill_trainers()
    elif luck < 0.52:
        world.damage_checkpoint()
    elif luck < 0.55:
        world.resume_run()
    elif world.server is None:
        world.restart_server()
    elif world.fleet is None:
        world.start_trainers()
    world.tick()


FIRST: tuple[dict[str, Any], ...] = (
    {"kind": "set_learning_rate", "factor": 0.5},
    {"kind": "set_learning_rate", "factor": 2.0, "group": "decay"},
    {"kind": "set_knobs", "changes": [{"knob": "weight_decay", "value": 0.3, "group": "decay"}]},
    {"kind": "set_knobs", "changes": [{"knob": "unheard of", "value": 1.0}]},
    {"kind": "freeze", "parameters": "head"},
)
NAMES = (None, None, None, "x", "y", "branch-3")


def go_back_somewhere(world: World) -> None:
    """To any checkpoint there ever was, or to a branch that there is, or is not; sometimes at a later step."""
    dice, step = world.dice, world.fleet.step if world.fleet else 0
    body: dict[str, Any] = {"branch": dice.choice([*world.books.history.lines] * 3 + ["x", "nowhere"])}
    if world.files and dice.random() < 0.6:
        body = {"checkpoint": dice.choice(list(world.files)), "first": dice.sample(FIRST, dice.choice((0, 0, 1, 2)))}
        body |= {"branch": name} if (name := dice.choice(NAMES)) else {}
    later = step + dice.randint(0, 6) if dice.random() < 0.2 else None
    world.try_submit("rollback", not_before_step=later, based_on_seq=some_view(world), **body)


def adopt_something(world: World) -> None:
    """Another run's checkpoint, which it has from this one, as a branch; perhaps one that there is already."""
    told = [each.record.checkpoint for each in world.disk.entries if isinstance(each.record, CheckpointCommitted)]
    sound = [name for name in told if not world.files[name].is_damaged and ADOPTED not in name]
    if sound:
        with suppress(Refused):
            world.adopt(world.dice.choice(sound), world.dice.choice(("x", "adopted", "adopted-2", "branch-4")))


def wander(world: World) -> None:
    """One random action in a history of many branches."""
    world.save_rate = 0.2
    luck = world.dice.random()
    if luck < 0.22:
        submit_something(world)
    elif luck < 0.33:
        go_back_somewhere(world)
    elif luck < 0.36:
        cancel_something(world)
    elif luck < 0.38:
        keep_or_delete_something(world)
    elif luck < 0.40:
        adopt_something(world)
    elif luck < 0.42:
        world.lose_everything()
    elif luck < 0.44:
        world.kill_trainers()
    elif luck < 0.48:
        world.damage_checkpoint(world.dice.choice(list(world.files)) if world.files else None)
    elif luck < 0.50:
        world.resume_run()
    elif luck < 0.51:
        world.faults.stop_server(at=world.dice.choice(CRASH_POINTS))
    elif luck < 0.53 and world.unanswered:
        world.try_send(world.dice.choice(list(world.unanswered.values())))
    elif world.server is None:
        world.restart_server()
    elif world.fleet is None:
        world.start_trainers()
    world.tick()


def wander_through(seed: int, actions: int = 60, ranks: int = 2, parts: Parts = Parts()) -> World:
    """A whole history of rollbacks among everything else, healed and brought to its end. Raises `Violation`."""
    world = World(seed, ranks, troubles(seed), parts)
    world.keep_last = seed % 3
    world.goes_back_at_the_end = seed % 2 == 0
    for _ in range(actions):
        wander(world)
    world.finish()
    return world
