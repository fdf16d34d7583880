"""Documents of users as text for a prompt."""
