"""What a graph runs on, and what each can run."""
