"""The report of a comparison: one HTML file that needs nothing else.

>>> from lossworks.report import ReportData, render
"""

from lossworks.report.data import ReportData
from lossworks.report.render import render

__all__ = ["ReportData", "render"]
