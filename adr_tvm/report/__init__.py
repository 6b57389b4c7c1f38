"""Results: data classes, tables, the HTML report."""
