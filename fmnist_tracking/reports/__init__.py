"""Reports: a run's figures and tables, as files and as one HTML page."""
