"""What saves work and what other libraries call things: the trunk leans on this wing alone, by names taken on trust."""
