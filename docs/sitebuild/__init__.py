"""What builds the site beside Sphinx: tutorials that are run, pages written from the code."""
