"""What a user reads while a run goes on and when it is over."""
