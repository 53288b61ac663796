"""The report: tables, charts, galleries and the browser of one page."""
