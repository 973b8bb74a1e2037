"""Process of one generator of a run, as the gateway supervises it.

    python -m control_plane.agent.generating --run RUN --generator NAME --folder PATH

Its settings (`GeneratorSettings`, as JSON), its token and the model's key come with the environment. It ends with exit
code 0 when its budget is used up, or the run has ended.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from pydantic import ValidationError

from control_plane.agent.generating.asking import Writer
from control_plane.agent.generating.batches import Memory
from control_plane.agent.generating.by_model import ByModel
from control_plane.agent.generating.loop import Generating
from control_plane.agent.generating.on_cluster import OnCluster
from control_plane.agent.ledger import Ledger
from control_plane.agent.model import ChatModel, endpoint
from control_plane.api.agent_spending import budgets_of
from control_plane.client import SteerwayClient
from control_plane.config import Settings, settings
from control_plane.core.model.errors import Invalid, SteerwayError
from control_plane.core.rules.agent.generating import GeneratorSettings

SETTINGS = "STEERWAY_GENERATOR"


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run the generator; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m control_plane.agent.generating", description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--generator", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        wanted = GeneratorSettings.model_validate_json(environ.get(SETTINGS, ""))
        generate(settings(environ), given.run, given.generator, wanted, given.folder, environ)
    except ValidationError:
        say(f"{SETTINGS} holds no settings of a generator")
        return Invalid.exit_code
    except SteerwayError as error:
        say(error.reason)
        return error.exit_code
    return 0


def generate(
    where: Settings, run: str, name: str, wanted: GeneratorSettings, folder: Path, environ: Mapping[str, str]
) -> None:
    """Generate records for a run. Raises `SteerwayError`."""
    with ExitStack() as stack:
        client = stack.enter_context(SteerwayClient.from_settings(where, role="operator"))
        writer: Writer
        if wanted.path is not None:
            writer = OnCluster(environ, (wanted.path, wanted.function))
        else:
            address = endpoint(environ)
            if address is None:
                raise Invalid("the gateway has no key of a model, which a generator with a prompt asks")
            ledger = stack.enter_context(Ledger.open(folder / "ledger.jsonl", budgets_of(where)))
            writer = ByModel(ChatModel(address, ledger), wanted.prompt or "", OnCluster(environ, None).examples)
        Generating(client, run, name, wanted, writer, Memory.read(folder), say).run_until_done()


def say(line: str) -> None:
    """Print a line at once: the gateway reads it."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
