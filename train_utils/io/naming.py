"""A mistake in one of many things -> the same, with that thing's name in front."""

from collections.abc import Iterator
from contextlib import contextmanager

from backbone.errors import InputError
from train_utils.io.plain_text import visible


@contextmanager
def naming(*names: object) -> Iterator[None]:
    """Puts names before the line of an InputError raised in the block; those that name a file themselves stay."""
    try:
        yield
    except InputError as error:
        if type(error) is not InputError:
            raise
        raise InputError(f"{visible(', '.join(map(str, names)))}: {error}") from error
