"""What every room stands on: errors, settings, runs, files, console, pages, tables, statistics."""
