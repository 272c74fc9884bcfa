"""`generate`'s options by their own names alone, for tests that take one after the other."""

import dataclasses

from univid.pipeline import Clip, Sampling, Source

GROUPS = {"clip": Clip, "source": Source, "sampling": Sampling}


def gathered(**options) -> dict:
    """The keywords of `generate` for options, some of which are fields of its groups."""
    for name, group in GROUPS.items():
        fields = {field.name for field in dataclasses.fields(group)} & options.keys()
        if fields:
            options[name] = group(**{field: options.pop(field) for field in sorted(fields)})
    return options
