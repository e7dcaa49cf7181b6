"""Tables, figures and reports from records. No JAX here."""

from cwgnc_train.analysis.racing_section import write_racing
from cwgnc_train.analysis.report_page import write_report
from cwgnc_train.analysis.run_curves import draw_curves
from cwgnc_train.analysis.unfreezing_section import write_unfreezing

__all__ = ("draw_curves", "write_racing", "write_report", "write_unfreezing")
