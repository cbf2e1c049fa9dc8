"""Take over what another build found out by measuring, so that the same source gives the same file elsewhere.

What a build measures decides on three things: the forms of kernels, which form of the graph is shipped, and whether a
graph in fewer bits is faster. All of them stand in its manifest; with them, nothing is left to the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxopt.errors import InputError
from onnxopt.pipeline.lowering import KEPT, PADDING, REMOVED
from onnxopt.quantize.workplace import Settled, settled_by
from onnxopt.records.manifest import MANIFEST_NAME, FormRecord, Manifest, Shipped
from onnxopt.rewrite import Key
from onnxopt.rewrite.registry import catalogue
from onnxopt.road.options import Options
from onnxopt.spec import Target

OPTION = "--forms-from"
_FIT = "use the manifest of a build of the same source with the same options"


@dataclass(frozen=True)
class Pinned:
    """The measured choices of one graph of another build.

    Attributes:
        where: the manifest, as the user named it.
        forms: of kernels, by pass and class of regions.
        shipped: which form of the graph it ships.
        settled: what was measured of the graph in fewer bits.
    """

    where: str
    forms: Mapping[Key, str]
    shipped: Shipped
    settled: Settled

    @property
    def kernels(self) -> Mapping[Key, str] | None:
        """The forms to lower with; None where what is shipped was not lowered for the target."""
        return self.forms if self.shipped.form == "optimized" else None

    def require_same(self, forms: Mapping[Key, str]) -> None:
        """Make sure that a graph that was lowered with these forms has just them.

        Args:
            forms: of the lowered graph.

        Raises:
            InputError: it has others.
        """
        if self.kernels is None or self.forms == forms:
            return
        other = sorted(key for key in {*forms, *self.forms} if forms.get(key) != self.forms.get(key))
        key = other[0]
        here, there = (f"is {found[key]!r}" if key in found else "has none" for found in (forms, self.forms))
        more = f" (and {len(other) - 1} more)" if other[1:] else ""
        raise InputError(
            f"its forms do not fit this build: {_said(key)} {here} here and {there} there{more}",
            where=f"{OPTION} {self.where}",
            hint=_FIT,
        )


@dataclass(frozen=True)
class Pins:
    """The measured choices of another build.

    Attributes:
        where: its manifest, as the user named it.
        manifest: what it says.
    """

    where: str
    manifest: Manifest

    @classmethod
    def read(cls, options: Options, target: Target) -> Pins | None:
        """Read the manifest that the options name; None where they name none.

        Args:
            options: as the user wrote them.
            target: where this build will run.

        Raises:
            InputError: it cannot be read, or is of another target, or has forms that are not known here.
        """
        asked = options.tune.forms_from
        if asked is None:
            return None
        path = Path(asked).expanduser()
        found = Manifest.read_file(path / MANIFEST_NAME if path.is_dir() else path)
        where = f"{OPTION} {asked}"
        if options.tune.retune:
            raise InputError("forms are taken over or measured anew, not both", where=where, hint="drop --retune")
        if found.target.provider != target.provider:
            what = f"it was made for {found.target.provider}, this build is for {target.provider}"
            raise InputError(what, where=where, hint=f"add --target {found.target.provider}, or drop {OPTION}")
        amounts = str(options.prune.what or "")
        if "auto" in amounts:
            what = f"how much `{amounts}` takes is measured, and no manifest holds it"
            raise InputError(what, where=where, hint="write the amounts that were found, such as ffn=25%")
        own = options.rewrite.passes is not None
        for records in (found.forms, *(part.forms for part in found.parts.values())):
            _require_known(records or (), where, own=own)
        return cls(str(asked), found)

    def of(self, part: str = "") -> Pinned:
        """Return the choices of one graph.

        Args:
            part: `encoder` or `decoder`; empty for a model of one graph.

        Raises:
            InputError: the manifest has no such graph, or recorded no forms.
        """
        parts, where = self.manifest.parts, f"{OPTION} {self.where}"
        if bool(part) != bool(parts):
            one, two = "one graph", "an encoder and a decoder"
            what = f"it was made of {two if parts else one}, this build is of {two if part else one}"
            raise InputError(what, where=where, hint=_FIT)
        record = parts[part] if part else self.manifest
        if record.forms is None or record.shipped is None:
            raise InputError("it recorded no forms", where=where, hint="make that artifact again with this onnxopt")
        forms = {(one.name, one.kind): one.form for one in record.forms}
        return Pinned(self.where, forms, record.shipped, settled_by(self.manifest.quantization))


def _require_known(records: Iterable[FormRecord], where: str, *, own: bool) -> None:
    """Refuse a form that no pass here has.

    Args:
        records: of a manifest.
        where: its name, for the message.
        own: the build has passes of the user's own, which are not in the catalogue.
    """
    known = {name: step.forms for name, step in catalogue().items()} | {PADDING[0]: (KEPT, REMOVED)}
    for one in records:
        if one.name not in known and own:
            continue
        if one.form not in known.get(one.name, ()):
            what = f"no pass here has the form {one.form!r} of {_said((one.name, one.kind))}"
            raise InputError(what, where=where, hint="use the version of onnxopt that made it")


def _said(key: Key) -> str:
    return f"{key[0]} ({key[1]})" if key[1] else key[0]
