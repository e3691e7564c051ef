"""The tables of a run: their columns, and the values that name a kind of row."""

MODULE, ENSEMBLE, REFERENCE = "module", "ensemble", "reference"
