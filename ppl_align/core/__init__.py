"""What every other folder stands on: errors, seeds, cost, estimates, safe writing. It imports nothing of ours."""
