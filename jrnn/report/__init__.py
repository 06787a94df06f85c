"""Reports: one HTML page for a run, a sweep or a comparison of runs, without outside requests."""

from jrnn.report.compare_page import make_comparison as make_comparison
from jrnn.report.run_page import make_run_report as make_run_report
