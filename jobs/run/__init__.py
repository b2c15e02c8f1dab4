"""What every job shares: its Ray session, directory, worker set-up, progress and failures."""
