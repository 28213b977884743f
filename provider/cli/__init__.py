"""The `provider` command: parses, prints, exits 0 done, 1 refused or failed, 2 wrong usage."""

import click

from provider.cli.keys import keygen, sign
from provider.cli.releasing import release
from provider.cli.showing import atlas, card, diff
from provider.cli.trusting import trust


@click.group(context_settings={"max_content_width": 100})
@click.version_option(package_name="planearly")
def main() -> None:
    """Cluster a generic corpus, pretrain on it, publish signed bundles."""


for command in (keygen, release, card, atlas, diff, sign, trust):
    main.add_command(command)
