"""Messages that name flags -> messages that name the keywords of the functions in maskrcnn.py."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from backbone.errors import InputError

FLAG = re.compile(r"(?<![\w/.-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")
PHRASES = {
    "--resume auto": 'resume="auto"',
    "leave the flag out": "leave it out",
    "leave those flags out": "leave them out",
}


def in_python_words(text: str) -> str:
    """Returns a message with `min_size` in place of `--min-size`."""
    for words, here in PHRASES.items():
        text = text.replace(words, here)
    return FLAG.sub(lambda flag: flag[1].replace("-", "_"), text)


@contextmanager
def speaking_python() -> Iterator[None]:
    """Turns the words of an InputError raised in the block into Python's."""
    try:
        yield
    except InputError as error:
        error.args = tuple(in_python_words(part) if isinstance(part, str) else part for part in error.args)
        raise
