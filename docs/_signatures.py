"""Show shared arguments in signatures, in place of ``**common`` and ``**curve``."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROW = re.compile(r"^ *\*\*common:.*\n(?: {8,}.*\n)*", re.MULTILINE)


class SharedArguments(griffe.Extension):
    """Adds what a sampler passes to `BatchSampler`, and a `Training` to its learning curve."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Complete the signatures and the tables of arguments of a loaded package."""
        if "samplers" not in pkg.modules:
            return
        base = pkg["samplers._base.BatchSampler"]
        rows = re.search(r"^ *labels:.*?(?=\n\n)", base.docstring.value, re.M | re.S)
        for module in pkg["samplers"].modules.values():
            for cls in module.classes.values():
                if not cls.is_alias:
                    if cls.docstring is not None:
                        cls.docstring.value = _ROW.sub(rows[0] + "\n", cls.docstring.value)
                    _complete(cls, "common", base)
        _complete(
            pkg["training._training.Training"], "curve", pkg["training._schedule.LearningCurve"]
        )


def _complete(cls: griffe.Class, name: str, owner: griffe.Class) -> None:
    """Replace ``**name`` by the owner's keyword arguments that the class does not list."""
    init = cls.members.get("__init__")
    if init is None or name not in init.parameters:
        return
    own = [one for one in init.parameters if one.name != name]
    listed = {one.name for one in own}
    shared = [one for one in owner["__init__"].parameters if one.name not in listed]
    options = [one for one in [*shared, *own] if one.kind.value == "keyword-only"]
    # The required ones first.
    options.sort(key=lambda one: one.default is not None)
    first = [one for one in own if one.kind.value != "keyword-only"]
    init.parameters = griffe.Parameters(*first, *options)
