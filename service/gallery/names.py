"""Names of subjects and collections are data: any text a person may write, with no meaning as a path or a query."""

import unicodedata

from service.errors import OptionInvalid

MAX_NAME = 200
"""Characters (code points, after normalisation) of a name."""
DEFAULT = "default"
"""The collection that is meant where none is named."""
_UNWANTED = frozenset({"Cc", "Cs"})  # control characters, lone surrogates


def check_name(option: str, text: str) -> str:
    """`text` as it is kept: in Unicode's composed form (NFC), so that names which look the same are the same.

    Raises OptionInvalid naming `option` where it is empty, too long, or holds what is no text.
    """
    name = unicodedata.normalize("NFC", text)
    if not name.strip():
        raise OptionInvalid(option, f"{option} is empty; give it 1 to {MAX_NAME} characters")
    if len(name) > MAX_NAME:
        raise OptionInvalid(option, f"{option} has {len(name)} characters; at most {MAX_NAME} are kept")
    if name != name.strip():
        raise OptionInvalid(option, f"{option} begins or ends with white space; leave that out")
    if "\N{REPLACEMENT CHARACTER}" in name:
        raise OptionInvalid(option, f"{option} was not sent as UTF-8, or holds U+FFFD; write its bytes in UTF-8")
    for character in name:
        if unicodedata.category(character) in _UNWANTED:
            raise OptionInvalid(option, f"{option} holds the control character U+{ord(character):04X}; leave that out")
    return name
