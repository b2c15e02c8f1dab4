"""Where it runs: a Ray cluster that is already there, or one started on this machine for the time of a job."""
