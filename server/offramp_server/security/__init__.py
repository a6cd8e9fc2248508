"""Who may connect, what they may do, and how much of it: certificates, tokens, limits a client."""
