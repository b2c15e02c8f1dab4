"""What every job shares: its Ray session, directory, worker set-up, metrics, interrupts and failures."""
