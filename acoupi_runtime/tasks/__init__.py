"""tasks: what happens to a recording after it is complete. Import no celery, and run without it."""
