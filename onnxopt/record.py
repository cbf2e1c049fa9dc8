"""The frozen pieces that records are made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A frozen piece of a record; unknown keys are an error, so that a typing slip is seen."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def to_json(self) -> str:
        """Return the record as indented JSON that ends with a newline."""
        return self.model_dump_json(indent=2) + "\n"


class ProvedRange(Record):
    """Between which sizes of an axis a result was compared with its reference.

    Attributes:
        least: the smallest size that was compared.
        most: the largest size that was compared.
        step: the model runs at multiples of it.
        promised: the largest size that the model takes, 0 where it names none.
    """

    least: int = Field(ge=0)
    most: int = Field(ge=0)
    step: int = Field(default=1, ge=1)
    promised: int = Field(default=0, ge=0)
