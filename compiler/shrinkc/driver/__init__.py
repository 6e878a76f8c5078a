"""From files that users have to plans, programs, proved runs and measurements: what every command does."""
