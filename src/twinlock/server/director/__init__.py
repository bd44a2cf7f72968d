"""The director: its key and roots (`folder`), and what it signs for each device (`answers`)."""
