"""What saves work, other libraries' names, small mathematics: the trunk leans on this wing alone, on trust."""
