"""What an export would give and take, told before anything is written."""
