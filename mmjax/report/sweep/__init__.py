"""Report of a sweep: a page, tables, figures and statistics.

study     reads a sweep's folder: cells, choices, tested trials
stats     means, intervals, paired tests, corrections
tables    the main table as Markdown, CSV and LaTeX
prose     head, readings of the tests, costs, what is missing
plots     figures as SVG that are legible in light and dark
page      report.html and the files beside it
"""
