"""The result of a fit, as Python and notebooks show it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from hubretrain.errors import EngineError
from hubretrain.runs import Run
from hubretrain.screening import formatting


@dataclass(frozen=True)
class Screening:
    """The result of `screen_modules`; a notebook shows it as a table.

    Attributes:
        run: The run that holds it.
        metric: Metric of choice.
        leaderboard: One row per module, the ensemble and the baselines; best first.
        effects: The ablation, one row per effect: effect, metric, estimate, low, high, p,
            n_modules, sentence.
        notes: Sentences that a reader of the leaderboard should know.
    """

    run: Run
    metric: str
    leaderboard: pd.DataFrame
    effects: pd.DataFrame
    notes: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """Return the leaderboard as people read it: estimates in percent with their intervals."""
        metrics = formatting.shown_metrics(self.metric, self.leaderboard)
        rows = []
        for _, row in self.leaderboard.iterrows():
            cells = {"": "=" if row["tied"] else "", "module": formatting.row_name(row)}
            for metric in metrics:
                words = formatting.estimate_words(row, metric)
                text = "" if words is None else f"{words[0]} ({words[1]}-{words[2]})"
                cells[formatting.metric_name(metric)] = text
            rows.append({**cells, "head": formatting.head_words(row)})
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        table = self.table().to_html(index=False, border=0)
        legend = "Percent, with 95 % confidence intervals; log loss in nats. =: tied with the best."
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"{table}<p>{legend}</p>{notes}"

    def plot(self, metric: str | None = None, **options: Any) -> Any:
        """Draw a metric of each row with its 95 % interval, the best on top.

        Args:
            metric: A metric of the leaderboard; by default the metric of choice.
            **options: Passed to `DataFrame.plot.barh` of pandas, such as `ax`.

        Returns:
            The axes of matplotlib.

        Raises:
            EngineError: matplotlib is not installed.
        """
        name = metric or self.metric
        board = self.leaderboard.dropna(subset=[name])[::-1]
        ends = [board[name] - board[f"{name}_low"], board[f"{name}_high"] - board[name]]
        drawn = pd.DataFrame(
            {name: board[name].to_numpy()},
            index=[formatting.row_name(r) for _, r in board.iterrows()],
        )
        try:
            return drawn.plot.barh(
                **{"xerr": [[end.to_numpy() for end in ends]], "legend": False, **options},
                xlabel=formatting.metric_name(name),
            )
        except ImportError as error:
            raise EngineError(
                "matplotlib is not installed: pip install 'hubretrain[report]'"
            ) from error
