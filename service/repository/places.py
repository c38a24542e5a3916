"""Where the manifests are that come with the service."""

from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def own_manifests(package: Path = PACKAGE) -> Path:
    """The folder of the manifests that come with the service, in a checkout or in an installed wheel."""
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "models").is_dir():
        return checkout / "models"
    return package / "manifests"
