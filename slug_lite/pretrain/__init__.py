"""How the shipped models were trained, from nothing, on the mini world alone."""
