"""The command line: the same engine as the server, on files and folders.

vision-service serve | models list | models pull | models inspect FILE | classify | detect | detect-faces | verify-face
               | stylize | faces enroll FOLDER | faces list | faces identify | faces export FILE | faces import FILE
               | faces reembed FOLDER | faces forget SUBJECT | calibrate PAIRS.csv | doctor
"""

import argparse
import sys
from collections.abc import Sequence

from service import __version__
from service.cli import calibrate, doctor, faces, manage, optimize, pictures, serve
from service.errors import VisionError
from service.intake.words import printable


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; each verb's module adds its own part."""
    parser = argparse.ArgumentParser(
        prog="vision-service",
        description="Classify pictures, find objects, compare faces and paint photos; over HTTP or right here.",
        epilog="Settings come from VISION_* variables; README.md lists them.",
    )
    parser.add_argument("--version", action="version", version=f"vision-service {__version__}")
    verbs = parser.add_subparsers(title="commands", dest="verb", metavar="COMMAND", required=True)
    for part in (serve, manage, pictures, optimize, faces, calibrate, doctor):
        part.add_to(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 it failed with a message, 2 the command line was wrong, 130 interrupted."""
    arguments = build_parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 0
    except (VisionError, OSError) as error:
        lines = map(printable, str(error).split("\n"))
        print("vision-service: " + "\n".join(lines), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status
