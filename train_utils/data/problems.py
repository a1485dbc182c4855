"""Annotations that a data set leaves out: counted by reason, with where the first of each stands."""

from backbone.errors import InputError


def describe_skips(skipped: dict[str, int], first: dict[str, str]) -> str:
    """ "3 annotations without segmentation (first: id 17), ..."; empty where there are none."""
    return ", ".join(f"{count} {reason} (first: {first[reason]})" for reason, count in skipped.items() if count)


def refuse_skips(data_set) -> None:
    """InputError if the data set left annotations out: what --strict asks for."""
    skips = describe_skips(data_set.skipped, data_set.first_skipped)
    if skips:
        raise InputError(f"{data_set.source}: --strict: {skips}; correct them, or leave --strict out to skip them")
