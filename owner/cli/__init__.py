"""The `owner` command: parses, raises the walls, prints, exits 0 done, 1 refused or failed, 2 usage."""

import click

from owner.cli.doctor import completion, doctor
from owner.cli.privacy import audit, histogram
from owner.cli.specializing import specialize
from owner.cli.trusting import inspect, trust
from owner.cli.using import compare, evaluate, export, generate


@click.group(context_settings={"max_content_width": 100})
@click.version_option(package_name="planearly")
def main() -> None:
    """Specialize a signed bundle on private documents. Nothing is sent anywhere."""


COMMANDS = (
    *(trust, inspect, doctor, specialize, audit, histogram),
    *(evaluate, compare, generate, export, completion),
)
for command in COMMANDS:
    main.add_command(command)
