"""Reports of profiles: the page, the terminal table, and the verdict both of them open with."""

from edgevit.reports.html import render_html, write_html
from edgevit.reports.table import print_table
from edgevit.reports.verdict import Absent, Finding, findings

__all__ = ["Absent", "Finding", "findings", "print_table", "render_html", "write_html"]
