"""What a file is, by the readers of outputs in turn: the first that knows them."""

from collections.abc import Callable

from service.errors import ModelRefused
from service.intake import detectors, heads, plain
from service.intake.seen import Role, Seen

READERS: tuple[Callable[[Seen], Role | None], ...] = (
    heads.faces,
    plain.picture,
    plain.masks,
    heads.chosen,
    heads.nanodet,
    heads.queries,
    detectors.one_table,
    plain.row,
    heads.anchor_heads,
)


def find_role(seen: Seen) -> Role:
    """Raises ModelRefused for outputs that nothing here reads, or not as was told; what is open is asked through the notes."""
    role = next((role for reader in READERS if (role := reader(seen)) is not None), None)
    told = seen.told
    if role is None:
        wanted = f" as {told.decoder}" if told.decoder else ""
        raise seen.refuse(
            f"its outputs cannot be read{wanted}: no detector, classifier, style network or face network known here answers so"
        )
    if told.decoder and role.decoder != told.decoder:
        raise seen.refuse(f"its outputs cannot be read as {told.decoder}; they look like {role.decoder or role.task}")
    if told.task and role.task != told.task:
        raise seen.refuse(f"it is no model for {told.task}; it looks like one for {role.task}")
    if told.classes and role.classes and told.classes != role.classes:
        raise ModelRefused(f"it answers {role.classes} classes, not {told.classes}")
    return role
