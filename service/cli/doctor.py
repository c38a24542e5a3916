"""`vision-service doctor`: the report of service.doctor on a terminal, or as JSON lines."""

import argparse

from rich.console import Console
from rich.text import Text

from service.cli.verbs import Verbs
from service.doctor import COMMAND, examine
from service.settings import Settings

MARKS = {"good": ("ok", "green"), "note": ("--", "yellow"), "bad": ("!!", "red")}


def add_to(verbs: Verbs) -> None:
    parser = verbs.add_parser("doctor", help="say what is installed, what really runs and what is missing")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """0 when the service can start, 1 when something keeps it from starting."""
    console = Console(highlight=False, soft_wrap=True)
    bad, pull = 0, False
    for finding in examine(Settings.from_env()):
        bad += finding.state == "bad"
        pull = pull or finding.text.endswith("not built yet")
        if arguments.json:
            print(finding.model_dump_json())
            continue
        mark, color = MARKS[finding.state]
        console.print(Text.assemble((mark, color), f" {finding.topic:<12} {finding.text}"))
        if finding.next:
            console.print(Text(f"   {'':<12} -> {finding.next}", style="bold"))
    if not arguments.json:
        advice = f"{COMMAND} serve" + ("   (models are fetched first)" if pull else "")
        console.print(f"\n{bad} problem(s) to mend first, see above" if bad else f"\nAll good. Next: {advice}")
    return 1 if bad else 0
