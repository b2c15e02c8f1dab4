"""What jobs share: Ray session, a run's directory, worker set-up, metrics, interrupts, failures, counted attempts and ports."""
